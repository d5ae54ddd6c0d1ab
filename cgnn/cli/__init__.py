"""The command line."""

from cgnn.cli import profile  # noqa: F401 - adds its command
from cgnn.cli.commands import app, main

__all__ = ["app", "main"]
