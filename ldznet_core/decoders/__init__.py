"""Mask decoders: networks that turn a latent, and what a backbone saw of it, into logits of a phrase's mask.

`files.py` reads and writes them; a file says which decoder it holds, and for which backbones it was trained.
Nothing here runs a backbone.
"""
