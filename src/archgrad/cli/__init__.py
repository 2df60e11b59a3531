"""The command line: `archgrad demo | slim | search | train | export | report | resume | runs | doctor | ...`."""

import sys

from archgrad.cli.interruptible_imports import interruptible

__all__ = ["main"]


def main() -> None:
    """The command `archgrad`."""
    with interruptible():
        from archgrad.cli.app import main as run
    try:
        run()
    except KeyboardInterrupt:  # before the command or after it
        sys.exit(130)
    except OSError as error:  # of the output itself: a full disk, a closed pipe
        print(f"archgrad cannot write its output: {error.strerror or error}.", file=sys.stderr)  # noqa: T201
        sys.exit(2)
