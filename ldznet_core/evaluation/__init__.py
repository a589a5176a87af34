"""Evaluation: how good masks are, as the paper measures it.

Metrics, predictors (decoders and methods without one, asked for masks of a data set's examples), tables of scores, and
the rows that others published. Nothing here knows a data set or makes masks of its own.
"""
