"""The errors that the command line prints without a traceback: a user's mistake, and a refusal."""


class LooplineError(Exception):
    """A user's mistake. The message says what is wrong, where, and what to do. `loopline` prints it and exits with `code`."""

    code = 1


class RefusedError(LooplineError):
    """A refusal of a bundle after a judgement, now or earlier. Nothing failed."""

    code = 2
