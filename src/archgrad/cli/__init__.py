"""The command line: `archgrad demo | slim | train | export | report | resume | methods`."""

from archgrad.cli.app import main

__all__ = ["main"]
