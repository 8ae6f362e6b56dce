"""From encoded pictures to one noised share: latents, the loaded base, gradients, the private update."""
