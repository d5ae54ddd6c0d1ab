"""The command ``profile``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cgnn.cli.commands import app
from cgnn.cli.options import ConfigPath, Overrides, TrainDevice
from cgnn.cli.voice import counted, say, show

Steps = Annotated[int, typer.Option(min=1, help="Steps to measure, after as many to warm up.")]
Trace = Annotated[Path | None, typer.Option(help="Also write a Chrome trace of one epoch more (.json).")]


@app.command()
def profile(
    config: ConfigPath, override: Overrides = None, steps: Steps = 20, device: TrainDevice = None, trace: Trace = None
) -> None:
    """Show where the time of an epoch of training goes."""
    from cgnn.config import load

    settings = load(config, [*(override or []), *([f"train.device={device}"] if device else [])])
    from cgnn.train.profile import profile_run, to_text

    parts = profile_run(settings, steps, trace, counted)
    show(to_text(parts))
    if trace:
        say(f"trace: {trace} (open it in chrome://tracing or https://ui.perfetto.dev)")
