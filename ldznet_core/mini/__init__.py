"""The bundled miniature: a real, small latent diffusion model, its world of data, and its build."""

STEPS = ("pack", "vae", "denoiser", "decoders", "light", "grow", "adapt", "dit", "recognise", "evaluate", "bundle")
"""The build's steps, in order; each is a function of `steps`."""
