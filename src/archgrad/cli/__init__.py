"""The command line: `archgrad demo | slim | search | train | export | report | resume | runs | doctor | ...`."""

import sys

from archgrad.cli.importing import interruptible

__all__ = ["main"]


def main() -> None:
    """The command `archgrad`."""
    with interruptible():
        from archgrad.cli.app import main as run
    try:
        run()
    except KeyboardInterrupt:  # before the command or after it
        sys.exit(130)
