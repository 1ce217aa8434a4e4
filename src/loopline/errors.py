"""The one error that a user's mistake raises. The command line prints it without a traceback."""


class LooplineError(Exception):
    """Says what was wrong, where, and what to do. `loopline` prints it and exits with 1."""
