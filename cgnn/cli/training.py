"""What the command ``train`` calls: a run of one network, or of several that predict together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cgnn.cli.voice import Epochs, counted, epoch_line, say
from cgnn.config import Config
from cgnn.errors import ConfigError
from cgnn.train import Ensemble, Run, train, train_ensemble
from cgnn.train.engine import is_first_process

Training = Callable[[Config, Path, bool], Run | None]


def _as_one(settings: Config, output: Path, resume: bool) -> Run | None:
    """Train one network; return nothing where another process speaks for all."""
    with Epochs(settings.epochs) as report:
        run = train(settings, output, resume=resume, report=report, watch=counted, tell=say)
    return run if is_first_process() else None


def training(
    output: Path, resume: bool, members: int | None, by: str | None, side_by_side: str | None, workers: int
) -> Training:
    """Return what trains: an ensemble where one was asked for or is resumed, else one network.

    Raises:
        ConfigError: Options of an ensemble were given for one network.
    """
    begun = Ensemble.load(output) if resume else None
    if begun is None and members in (None, 1):
        if by or side_by_side or workers:
            raise ConfigError("--by, --side-by-side and --workers are for ensembles: give also --members, such as 5")
        return _as_one
    kept = begun or Ensemble()
    plan = Ensemble(kept.members if members is None else members, by or kept.by, side_by_side or "auto", workers)

    def train_all(settings: Config, folder: Path, resume: bool) -> Run:
        say(f"{plan.members} members, by {plan.by}")
        return train_ensemble(settings, folder, plan, resume, _reports(plan.members, settings.epochs), counted)

    return train_all


def _reports(members: int, epochs: int) -> Callable[[int], Callable[[dict[str, float]], None]]:
    return lambda member: lambda row: say(f"member {member + 1}/{members}  {epoch_line(row, epochs)}")
