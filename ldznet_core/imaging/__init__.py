"""Imaging: pictures and files in and out, safe names, and pictures of masks.

Whatever people have on disk becomes plain 8-bit RGB or is refused in one sentence, and results are written whole or
not at all. Nothing here knows a model.
"""
