"""The one error that a user's mistake raises, and a refusal. The command line prints them without a traceback."""


class LooplineError(Exception):
    """Says what was wrong, where, and what to do. `loopline` prints it and exits with `code`."""

    code = 1


class RefusedError(LooplineError):
    """A bundle was judged and refused, now or before: nothing went wrong."""

    code = 2
