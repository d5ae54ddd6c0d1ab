"""Active learning: measured values of finalists come back, the model learns from them and proposes the next ones."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from cgnn.config import Config
from cgnn.data.dataset import CrystalDataset
from cgnn.data.records import blocks
from cgnn.data.store.content import content_key
from cgnn.errors import DataError, choose, unknown
from cgnn.files import write_text
from cgnn.physics import RELATIONS
from cgnn.screen.funnel import Funnel
from cgnn.screen.ranking import RANKINGS, Aim
from cgnn.screen.results import Screening
from cgnn.screen.settings import ScreenConfig
from cgnn.targets import Target
from cgnn.train import Ensemble, Run, fit, train, train_ensemble
from cgnn.train.trust.assess import assessed, combined_part

Array = NDArray[np.float64]
Indices = NDArray[np.int64]
Learn = Callable[[Indices], Array]
"""From the crystals whose values are known to draws of the property of all crystals (n, draws)."""
MEASURED = "measured.jsonl"
_IDS = ("material_id", "id")


def read_values(path: str | Path, targets: Sequence[Target]) -> dict[str, dict[str, float]]:
    """Read measured or computed values: a CSV with ``material_id`` and a column for each target that was measured.

    Args:
        path: The file; columns are named as targets or as the columns that these are read from. Empty cells are
            values that are not known.
        targets: What a model predicts.

    Returns:
        By id, the known values by column of the target.

    Raises:
        DataError: No ids or no target in it, a cell that is no number, a modulus that is not above zero; names them.
    """
    with open(path, newline="", encoding="utf-8-sig") as handle:
        rows = list(csv.DictReader(handle))
    header = list(rows[0]) if rows else []
    ids = next((name for name in _IDS if name in header), None)
    if ids is None:
        raise DataError(f"{path}: no ids: expected a column material_id, got {', '.join(header) or 'nothing'}")
    by_name = {name: target for target in targets for name in (target.name, target.source)}
    wrong = [name for name in header if name != ids and name not in by_name]
    if wrong:
        raise DataError(f"{path}: {unknown(wrong[0], dict.fromkeys(by_name), 'target')}")
    if len(header) < 2:
        raise DataError(f"{path}: no values: expected a column such as {next(iter(by_name))}")
    found: dict[str, dict[str, float]] = {}
    for line, row in enumerate(rows, 2):
        cells = {name: row[name] for name in by_name if row.get(name, "").strip()}
        if row[ids] in found:
            raise DataError(f"{path}: line {line}: {row[ids]!r} comes twice")
        found[row[ids]] = {by_name[n].source: _read(path, line, n, text, by_name[n]) for n, text in cells.items()}
    return {name: values for name, values in found.items() if values}


def _read(path: str | Path, line: int, name: str, text: str, target: Target) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{path}: line {line}: {name}: expected a number, got {text[:40]!r}")
    if target.transform == "log10" and value <= 0:
        raise DataError(f"{path}: line {line}: {name}: expected a number above 0, got {value:g}")
    return value


def retrain(
    config: Config,
    structures: Mapping[str, Any],
    values: Mapping[str, Mapping[str, float]],
    folder: str | Path,
    members: int = 1,
) -> Run:
    """Train on what was known and on measured values; an interrupted training goes on.

    Args:
        config: All settings of the training; its data stay, the measured crystals join them.
        structures: Crystals by id, such as `Screening.structures` gives.
        values: As `read_values` gives them.
        folder: Gets ``measured.jsonl`` and the run, ``run/``.
        members: More than one make an ensemble.

    Raises:
        DataError: A value is of no known crystal.
    """
    folder = Path(folder)
    for name in values:
        if name not in structures:
            raise DataError(f"measured values: {unknown(name, structures, 'crystal')}")
    lines = [
        orjson.dumps({"material_id": name, "structure": structures[name].as_dict(), **measured})
        for name, measured in values.items()
    ]
    path = folder / MEASURED
    write_text(path, "".join(f"{line.decode()}\n" for line in lines))
    data = config.data.model_copy(update={"path": (*config.data.paths, str(path))})
    settings, run = config.model_copy(update={"data": data}), folder / "run"
    has_begun = run.exists()
    return (
        train_ensemble(settings, run, Ensemble(members), has_begun) if members > 1 else train(settings, run, has_begun)
    )


def next_batch(
    screen: ScreenConfig,
    run: Run,
    candidates: str | Path,
    measured: Iterable[str],
    folder: str | Path,
    size: int,
) -> Screening:
    """Propose the next crystals to measure: the screen again with the new model, without those that were measured.

    Args:
        screen: The stages; models of those that predict what the new one predicts are replaced by it.
        run: The new model.
        candidates: File or folder of crystals.
        measured: Ids that are left out.
        folder: Of the new screen; one that was interrupted goes on.
        size: How many the last ranking keeps.
    """
    from cgnn.predict import Predictor

    mine = {target.name for target in run.config.targets}
    last = max(place for place, stage in enumerate(screen.stages) if stage.kind == "rank")
    stages: list[Any] = list(screen.stages)
    for place, stage in enumerate(screen.stages):
        if stage.kind == "predict":
            theirs = {target.name for target in Predictor.load(stage.model, "cpu").info.config.targets}
            if mine & theirs:
                stages[place] = stage.model_copy(update={"model": str(run.folder)})
    stages[last] = stages[last].model_copy(update={"keep": size})
    settings = screen.model_copy(update={"stages": tuple(stages)})
    resume = Path(folder).exists()
    funnel = Funnel(settings, exclude=measured)
    return funnel.run(blocks(candidates), folder, resume=resume, source=content_key(candidates))


@dataclass(frozen=True)
class Simulation:
    """How fast the best crystals were found.

    Args:
        size: Number of crystals.
        best: How many of them were looked for.
        evaluated: Values known after each round.
        found: Of these, how many of the best.
    """

    size: int
    best: int
    evaluated: tuple[int, ...]
    found: tuple[int, ...]

    def needed(self, share: float) -> float:
        """Return how many evaluations it took to find a share of the best; ``nan`` where they were not found."""
        wanted = math.ceil(share * self.best - 1e-9)
        return next((n for n, found in zip(self.evaluated, self.found, strict=True) if found >= wanted), math.nan)

    def needed_at_random(self, share: float) -> float:
        r"""Return how many it takes on average in random order, :math:`j (N + 1) / (k + 1)` for j of k among N."""
        return math.ceil(share * self.best - 1e-9) * (self.size + 1) / (self.best + 1)


def simulate(
    truth: Array,
    learn: Learn,
    by: str = "expected_improvement",
    *,
    start: int = 50,
    batch: int = 20,
    rounds: int = 10,
    share: float = 0.01,
    quantile: float | None = None,
    seed: int = 0,
) -> Simulation:
    """Play active learning with known values: each round learns from what is known and asks for the best ranked.

    Args:
        truth: Values of all crystals (n,), which stand in for measurements.
        learn: Learns from some of them.
        by: An entry of `RANKINGS` for one property, or ``random``; thresholds are the best value known so far.
        start: Known values in the beginning, drawn at random.
        batch: How many are asked for in a round.
        rounds: Their number.
        share: Of the crystals that count as the best.
        quantile: Of a bound.
        seed: Draws the first crystals, and those of ``random``.

    Raises:
        DataError: A value is unknown, or there are not enough.
        ConfigError: No such ranking.
    """
    if not np.isfinite(truth).all() or not 0 < start < len(truth):
        raise DataError(f"simulation: expected finite values of more than {start} crystals, got {len(truth)}")
    rng = np.random.default_rng([seed, 5])
    best = set(np.argsort(-truth, kind="stable")[: math.ceil(share * len(truth))].tolist())
    known = np.sort(rng.choice(len(truth), start, replace=False))
    evaluated, found = [len(known)], [len(best.intersection(known.tolist()))]
    for _ in range(rounds):
        left = np.setdiff1d(np.arange(len(truth)), known)
        if not len(left):
            break
        asked = _asked(by, learn, truth, known, left, batch, quantile, rng)
        known = np.sort(np.concatenate([known, asked]))
        evaluated.append(len(known))
        found.append(len(best.intersection(known.tolist())))
    return Simulation(len(truth), len(best), tuple(evaluated), tuple(found))


def _asked(
    by: str,
    learn: Learn,
    truth: Array,
    known: Indices,
    left: Indices,
    batch: int,
    quantile: float | None,
    rng: np.random.Generator,
) -> Indices:
    if by == "random":
        return np.asarray(rng.permutation(left)[:batch])
    ranking = choose(RANKINGS, by, "ranking")
    aim = Aim(quantile or ranking.quantile or 0.5, float(truth[known].max()))
    scores = ranking.score(learn(known)[left], aim)
    return np.asarray(left[np.argsort(-np.nan_to_num(scores, nan=-np.inf), kind="stable")[:batch]])


def network_learner(
    config: Config,
    dataset: CrystalDataset,
    crystals: Indices,
    folder: str | Path,
    of: str = "hardness_mo",
    draws: int = 200,
) -> Learn:
    """Return what fits a network on known moduli and draws a derived property of all crystals.

    Args:
        config: Of the network; its targets are ``bulk_modulus`` and ``shear_modulus``, ``data.split.val`` the share of
            the known crystals that choose the epoch and calibrate the errors.
        dataset: Crystals with labels.
        crystals: Which of them take part (n,).
        folder: For the runs, a folder for each number of known values; a finished fit is not done again.
        of: An entry of `RELATIONS` that needs the moduli only.
        draws: Of each crystal.
    """

    def learn(known: Indices) -> Array:
        rng = np.random.default_rng([config.train.seed, 6, len(known)])
        mixed = crystals[rng.permutation(known)]
        held = max(10, round(config.data.split.val * len(known)))  # fewer calibrate nothing
        parts = {"train": np.sort(mixed[held:]), "val": np.sort(mixed[:held])}
        place = Path(folder) / f"{len(known):06d}"
        fitted = fit(config, dataset, parts, place, resume=(place / "last").exists())
        confidence = assessed([fitted.model], fitted.info, dataset, parts)
        learned = combined_part([fitted.model], dataset, crystals).learned
        moduli = confidence.confidence().draws({name: each.arrays() for name, each in learned.items()}, draws)
        relation = RELATIONS[of]
        given = {"bulk": moduli["bulk_modulus"], "shear": moduli["shear_modulus"]}
        with np.errstate(over="ignore", invalid="ignore"):
            return np.asarray(relation.function(*(given[need] for need in relation.needs)))

    return learn
