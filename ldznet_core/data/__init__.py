"""Data sets: what a decoder is trained on and what masks are scored against.

`base` says what every data set gives, `spec` names and loads them, `damage` counts what cannot be read, and there is a
file for each data set. Nothing here knows a model, a decoder or the miniature.
"""
