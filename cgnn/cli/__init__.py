"""The command line."""

from cgnn.cli import derive, profile, screen  # noqa: F401 - add their commands
from cgnn.cli.commands import app, main

__all__ = ["app", "main"]
