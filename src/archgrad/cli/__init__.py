"""The command line: `archgrad demo | slim | search | train | export | report | resume | runs | doctor | ...`."""

from archgrad.cli.app import main

__all__ = ["main"]
