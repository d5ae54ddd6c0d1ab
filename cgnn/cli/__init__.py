"""The command line."""

from cgnn.cli import depth, derive, embed, explain, probe, profile, pu, screen  # noqa: F401 - they add their commands
from cgnn.cli.commands import app, main

__all__ = ["app", "main"]
