"""The commands, one module each: the dataclass of its options, and what runs it.

A command imports heavy modules when it runs, so that --help answers at once.
"""


def failed(failures: int, done: int, strict: bool) -> int:
    """The exit code of a run over inputs: 1 where any failed if `strict`, else where nothing was done."""
    return 1 if failures and (strict or not done) else 0
