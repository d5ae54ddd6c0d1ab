"""Finished runs put together: one model that predicts their mean."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cgnn import strict
from cgnn.config import Config, EnsembleConfig
from cgnn.data.prepare import Watch
from cgnn.errors import CheckpointError, ConfigError, DataError
from cgnn.files import write_json
from cgnn.model import CrystalGNN
from cgnn.train.checkpoint import load_model
from cgnn.train.ensembles.ensemble import as_one
from cgnn.train.run import ENSEMBLE_FILE, Run, begin, check_folder

OWN = ("model", "train", "ensemble", "transfer")
"""Settings in which the runs may differ."""


def combine(runs: Sequence[str | Path], folder: str | Path, watch: Watch | None = None) -> Run:
    r"""Put finished runs into one model, calibrated and scored as one.

    With the predictions :math:`\mu_r` of the networks of all runs on the learned scale, it predicts
    :math:`t^{-1}(\mathrm{mean}_r\, \mu_r)`: networks of other depth or width, or such that went on from others, may
    stand side by side. What they do not share is, in the settings of the result, that of the first.

    Args:
        runs: Run folders, of one network or of several, with the same crystals in the same parts.
        folder: New or empty.
        watch: Wraps the stream of crystals while graphs are built, to show progress.

    Raises:
        ConfigError: Fewer than two runs, runs of other targets, data or graphs, or the folder holds something.
        CheckpointError: One is no run, or has not finished.
        DataError: The data are no longer those of the runs.

    Source: Lakshminarayanan, Pritzel and Blundell, NeurIPS 2017, arXiv:1612.01474.
    """
    folder = Path(folder)
    check_folder(folder, resume=False)
    if len({Path(run).resolve() for run in runs}) < max(2, len(runs)):
        raise ConfigError("runs: expected two or more, each of them once")
    found = [Run.load(run) for run in runs]
    for run in found:
        if not (run.folder / "metrics.json").is_file():
            raise CheckpointError(f"{run.folder}: has not finished; go on with it by --resume")
    stored = [load_model(run.model_file) for run in found]
    for run in found[1:]:
        _check_alike(found[0], run)
    networks = [network for one in stored for network in one.members]
    config = _together(found[0].config, networks)
    crystals = begin(config, folder, True, watch)
    if crystals.split != found[0].split:
        paths = ", ".join(config.data.paths)
        raise DataError(f"{paths}: not divided as in {found[0].folder} any more; the data have changed")
    write_json(folder / ENSEMBLE_FILE, {"runs": [str(run.folder) for run in found]})
    return as_one(networks, [one.info for one in stored], config, "run", crystals, folder)


def _check_alike(first: Run, other: Run) -> None:
    """Stop where two runs have learned different things, or have seen each other's validation crystals."""
    where = f"{first.folder} and {other.folder}"
    for run in (first, other):
        if run.config.pu is not None:
            raise ConfigError(f"{run.folder}: bags of cgnn pu are one model already")
    same = {name: getattr(first.config, name) for name in OWN}
    differing = strict.differences(first.config, other.config.model_copy(update=same))
    differing.pop("data.cache", None)
    if differing:
        lines = "; ".join(f"{key} is {here!r} and {there!r}" for key, (here, there) in differing.items())
        raise ConfigError(f"{where} can't be put together: {lines}")
    if first.split != other.split:
        raise ConfigError(f"{where} can't be put together: their crystals are divided otherwise")


def _together(first: Config, networks: Sequence[CrystalGNN]) -> Config:
    """Return the settings of the first, with what each network changes of its form."""
    base = first.of_member(0).model
    forms: list[dict[str, Any]] = []
    for network in networks:
        here, there = base.model_dump(), network.config.model_dump()
        forms.append({key: value for key, value in there.items() if value != here[key]})
    if any("hints" in form for form in forms):
        raise ConfigError("runs: networks with hints of different sources can't be put together")
    return first.model_copy(update={"model": base, "ensemble": EnsembleConfig(models=tuple(forms))})
