"""The command line."""

from cgnn.cli.commands import app, main

__all__ = ["app", "main"]
