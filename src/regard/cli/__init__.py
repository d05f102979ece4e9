"""The command line: `regard COMMAND`. One file for each command, imported only when it runs."""

from regard.cli._app import main as main

__all__ = ["main"]
