"""The command ``depth``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cgnn.cli.commands import app
from cgnn.cli.options import Overrides, TrainDevice, Workers, read_settings
from cgnn.cli.voice import LogFile, counted, epoch_line, say, show
from cgnn.errors import Stopped

if TYPE_CHECKING:
    from cgnn.train.depth import Study


@app.command()
def depth(
    config: Annotated[Path | None, typer.Argument(help="Settings (YAML); not needed with --resume.")] = None,
    output: Annotated[Path, typer.Option("--output", help="Where table, report and runs go.")] = Path("runs/depth"),
    override: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the study in --output.")] = False,
    device: TrainDevice = None,
    workers: Workers = 0,
    side_by_side: Annotated[str, typer.Option("--side-by-side", help="auto, serial, processes or ray.")] = "auto",
) -> None:
    """Compare networks of several depths and remedies; leave depth.csv, a report, and a verdict in words."""
    settings = read_settings(config, override, {"train.device": device}, output, resume)
    from cgnn.train.depth import depth_study, finished

    epochs = settings.train.epochs
    with LogFile(output):
        say(f"data: {', '.join(settings.data.paths) or 'not given'}, up to {epochs} epochs for each fit")
        lines = lambda name: lambda row: say(f"{name}  {epoch_line(row, epochs)}")  # noqa: E731
        try:
            study = depth_study(settings, output, resume, workers, lines, counted, side_by_side)
        except Stopped:
            _report(finished(settings, output))
            raise
        _report(study)


def _report(study: Study) -> None:
    """Write the report of as much as is done, and say what it says."""
    from cgnn.cli.depth_report import REPORT, write_depth_report

    if not study.rows:
        return
    for line in write_depth_report(study):
        show(line)
    say(f"table: {study.folder / 'depth.csv'}, report: {study.folder / REPORT}")
