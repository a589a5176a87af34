"""Backbones: who owns the VAE, the text encoder and the denoiser, one file each.

A backbone encodes, embeds, and runs the denoiser with taps; `load.py` opens the one that a file or folder needs.
Nothing here knows of masks or decoders, and no library of a host program is imported before it is needed.
"""
