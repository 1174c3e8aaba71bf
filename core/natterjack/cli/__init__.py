"""The command line."""

from natterjack.cli.main import main

__all__ = ["main"]
