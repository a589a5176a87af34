"""Errors meant for people."""


class InputError(ValueError):
    """bad input: one line that says what was wrong, with which value, and what to do"""
