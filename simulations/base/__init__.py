"""The small Stable Diffusion base that ships with the project, and the recipe that makes it."""
