"""Ensembles: several networks fitted on the same crystals, one model file with all of them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from cgnn import config as configs
from cgnn import strict
from cgnn.config import Config
from cgnn.data.engines.choice import processors
from cgnn.data.prepare import Watch
from cgnn.errors import CheckpointError, ConfigError, choose
from cgnn.files import write_json
from cgnn.model import CrystalGNN
from cgnn.train.at_once import check as check_at_once
from cgnn.train.checkpoint import MODEL_FILE, ModelInfo, load_model, save_model
from cgnn.train.ensembles.batched import can_batch, fit_batched
from cgnn.train.ensembles.member import ENSEMBLES, Member
from cgnn.train.ensembles.on_cluster import on_ray
from cgnn.train.ensembles.side_by_side import Group, Report, in_processes, one_by_one
from cgnn.train.loop import in_history
from cgnn.train.run import ENSEMBLE_FILE, Divided, Run, begin, check_folder, has_state, method_of, score
from cgnn.train.trust.assess import assessed
from cgnn.train.ways.transfer import with_hints

SIDE_BY_SIDE: dict[str, Callable[[Group], None]] = {
    "serial": one_by_one,
    "processes": in_processes,
    "batched": fit_batched,
    "ray": on_ray,
}
"""How members are fitted side by side; all go on where the members stand. ``serial``, ``processes`` and ``ray`` (a
cluster) give the same bits, ``batched`` the same numbers but for rounding."""


@dataclass(frozen=True)
class Ensemble:
    """What an ensemble is made of.

    Args:
        members: Number of networks.
        by: Entry of `ENSEMBLES`: what makes them differ.
        side_by_side: Entry of `SIDE_BY_SIDE`, or ``auto``: batched on a GPU, in processes elsewhere.
        workers: Number of processes; 0 means one for each processor that this process may use.
    """

    members: int = 5
    by: str = "seed"
    side_by_side: str = "auto"
    workers: int = 0

    def __post_init__(self) -> None:
        if self.members < 2:
            raise ConfigError(f"members {self.members}: an ensemble has at least 2")
        if self.workers < 0:
            raise ConfigError(f"workers {self.workers}: expected a number from 0 (one for each processor)")
        choose(ENSEMBLES, self.by, "ensemble")
        choose({"auto": None, **SIDE_BY_SIDE}, self.side_by_side, "way to fit members side by side")

    @classmethod
    def load(cls, folder: str | Path) -> Ensemble | None:
        """Return the ensemble that a folder holds, finished or not; None if it holds none.

        Raises:
            CheckpointError: Its file can't be read, or it was put together of finished runs.
        """
        path = Path(folder) / ENSEMBLE_FILE
        if not path.exists():
            return None
        try:
            content = json.loads(path.read_text())
            if isinstance(content, dict) and "runs" in content:
                raise CheckpointError(f"{folder}: was put together of finished runs; there is nothing to go on with")
            return cls(**content)
        except (ValueError, TypeError, OSError, ConfigError) as error:
            raise CheckpointError(f"{path}: could not be read: {error}") from None

    def save(self, folder: Path) -> None:
        """Write how the ensemble is made; not how many processes made it, on which nothing depends."""
        write_json(folder / ENSEMBLE_FILE, {k: v for k, v in asdict(self).items() if k != "workers"})


def train_ensemble(
    config: Config,
    folder: str | Path,
    ensemble: Ensemble | None = None,
    resume: bool = False,
    report: Callable[[int], Report] | None = None,
    watch: Watch | None = None,
) -> Run:
    """Fit several networks on the same crystals and leave one model folder, as `cgnn.train.train` does for one.

    The members leave their files in ``members/0``, ``members/1``, ...; ``best/`` holds the one model file with all
    of them, which predicts their mean. They share the split and the order of batches; their first weights come
    from (seed, member). On a processor each member uses one thread unless ``train.threads`` is set, so the result
    does not depend on the number of processes.

    Args:
        config: All settings.
        folder: New or empty, unless an ensemble is resumed.
        ensemble: What it is made of; by default five members by seed, or what is resumed.
        resume: Go on with the members in the folder that are not finished.
        report: Gives, for a member, what is called with each epoch's row.
        watch: Wraps the stream of crystals while graphs are built, to show progress.

    Raises:
        ConfigError: The folder holds something else already, or the settings do not fit.
        CheckpointError: The folder holds an ensemble of other settings.
        DataError: The data can't be used.
        Stopped: SIGINT or SIGTERM arrived; the states were saved.
    """
    folder = Path(folder)
    if config.train.devices * config.train.nodes > 1:
        raise ConfigError("train.devices: a member of an ensemble is fitted on one device")
    check_folder(folder, resume)
    begun = Ensemble.load(folder) if resume else None
    config = with_hints(config, folder if begun else None)
    plan = _resolved(ensemble or begun or Ensemble(), config, begun)
    if begun:
        _check_same(config, plan, begun, folder)
    elif has_state(folder):
        raise ConfigError(f"{folder}: holds a run of one network; go on with it without --members")
    elif resume:
        warnings.warn(f"{folder}: holds no ensemble yet; training starts from the beginning", stacklevel=2)
    crystals = begin(config, folder, not begun, watch)
    plan.save(folder)
    members = _members(config, plan, crystals, folder)
    group = Group(_of_members(config, plan), crystals.dataset, crystals.parts, folder / "members", members)
    SIDE_BY_SIDE[plan.side_by_side](replace(group, workers=plan.workers, report=report))
    return _gathered(config, plan, crystals, group)


def _resolved(plan: Ensemble, config: Config, begun: Ensemble | None) -> Ensemble:
    """Return the plan with the way of the begun ensemble or, without one, of the machine in place of ``auto``."""
    if plan.side_by_side != "auto":
        return plan
    if begun:
        return replace(plan, side_by_side=begun.side_by_side)
    if config.train.device != "cpu" and torch.cuda.is_available():
        return replace(plan, side_by_side="batched" if can_batch(config) else "serial")
    has_several = (plan.workers or processors()) > 1
    return replace(plan, side_by_side="processes" if has_several else "serial")


def _check_same(config: Config, plan: Ensemble, begun: Ensemble, folder: Path) -> None:
    changed = strict.differences(configs.load(folder / "config.yaml"), config)
    for name in ("members", "by"):
        if getattr(begun, name) != getattr(plan, name):
            changed[name] = (getattr(begun, name), getattr(plan, name))
    if "batched" in (plan.side_by_side, begun.side_by_side) and plan.side_by_side != begun.side_by_side:
        changed["side by side"] = (begun.side_by_side, plan.side_by_side)
    if changed:
        lines = "; ".join(f"{key} was {old!r}, is {new!r}" for key, (old, new) in changed.items())
        raise CheckpointError(f"{folder}: can't resume with other settings: {lines}")


def _members(config: Config, plan: Ensemble, crystals: Divided, folder: Path) -> tuple[Member, ...]:
    seed, training, number = config.train.seed, crystals.parts["train"], len(crystals.dataset)
    draw = ENSEMBLES[plan.by]
    ways = [method_of(config.of_member(m), folder / "members" / str(m), resume=True) for m in range(plan.members)]
    for m, way in enumerate(ways):
        form = config.of_member(m)
        if form.model.is_fitted_at_once:
            check_at_once(form, way)  # now, not after the networks before it have been fitted
    return tuple(Member(m, seed, draw(seed, m, training, number), way) for m, way in enumerate(ways))


def _of_members(config: Config, plan: Ensemble) -> Config:
    """Return the settings of each member: one thread where several share the processors."""
    if plan.side_by_side == "batched" or config.train.threads:
        return config
    return config.model_copy(update={"train": config.train.model_copy(update={"threads": 1})})


def _gathered(config: Config, plan: Ensemble, crystals: Divided, group: Group) -> Run:
    """Put the members into one model file and score their mean."""
    stored = [load_model(group.folder / str(member.number) / "best" / MODEL_FILE) for member in group.members]
    networks = [found.members[0] for found in stored]
    for member in group.members:
        if member.counts is not None:
            drawn = {crystals.dataset.ids[i]: int(n) for i, n in enumerate(member.counts) if n}
            write_json(group.folder / str(member.number) / "bootstrap.json", drawn)
    folder = group.folder.parent
    return as_one(networks, [found.info for found in stored], config, plan.by, crystals, folder)


def as_one(
    networks: Sequence[CrystalGNN],
    infos: Sequence[ModelInfo],
    config: Config,
    by: str,
    crystals: Divided,
    folder: Path,
) -> Run:
    """Leave networks as one model in a run folder, calibrated and scored.

    Args:
        networks: They predict their mean.
        infos: What travels with the models they come from.
        config: Settings of them all.
        by: What makes them differ.
        crystals: What they learned from, and the parts that calibrate and score them.
        folder: Run folder, begun.
    """
    info = assessed(networks, replace(infos[0], config=config), crystals.dataset, crystals.parts)
    metrics = score(networks, info, crystals.dataset, crystals.parts, folder)
    save_model(folder / "best" / MODEL_FILE, networks, replace(info, summary=_summary(by, infos, metrics)))
    return Run(folder, config, crystals.split, [], metrics, tuple(crystals.dataset.set_aside))


def _summary(by: str, infos: Sequence[ModelInfo], metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return the numbers of the training: those of the members, and the validation scores of their mean."""
    first = infos[0].summary
    summary: dict[str, Any] = {key: first[key] for key in ("train", "val", "test", "threads") if key in first}
    epochs = [info.summary["epochs"] if "epochs" in info.summary else [info.summary["epoch"]] for info in infos]
    summary |= {"by": by, "epochs": list(chain.from_iterable(epochs))}
    for name, scores in metrics.get("val", {}).items():
        summary |= {f"val_{name}_{key}": value for key, value in scores.items() if in_history(key)}
    return summary
