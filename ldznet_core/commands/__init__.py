"""The commands of `ldznet`, one module each, imported only when its command is called.

`add_arguments(parser)` adds what the command takes. `run(args)` does the work: it returns an exit status
(None is 0), or it is a generator that yields its results, a dict for a line of JSON and a str for a line as
it stands, and returns that status. Only `cli` prints; warnings and notes go through `logging`.
"""
