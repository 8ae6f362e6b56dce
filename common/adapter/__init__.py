"""Stable Diffusion base models, LoRA injection, adapter layout and its vector form."""
