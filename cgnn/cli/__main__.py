"""``python -m cgnn.cli``: the same as the command ``cgnn``."""

from cgnn.cli.commands import main

main()
