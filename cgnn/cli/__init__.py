"""The command line."""

from cgnn.cli import profile, pu  # noqa: F401 - add their commands
from cgnn.cli.commands import app, main

__all__ = ["app", "main"]
