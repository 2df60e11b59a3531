"""The command line: `archgrad demo | slim | search | train | export | report | resume | methods | bench`."""

from archgrad.cli.app import main

__all__ = ["main"]
