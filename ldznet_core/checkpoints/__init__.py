"""Checkpoints: model files on disk, read and written.

Single files with LDM's names, diffusers folders and CLIP's vocabulary become networks, sizes and tokens here.
Nothing here runs a model.
"""
