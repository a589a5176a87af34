"""Training: the loop that every network here is trained by, and what a decoder's training adds to it.

`loop` with optimisers, EMA, checkpoints and processes knows nothing of what is trained; `task` gives it the loss of a
decoder on a data set. `config` and `recipes` hold the settings, and `run` puts all together for `ldznet train`. Nothing
here knows which data set, or the miniature.
"""
