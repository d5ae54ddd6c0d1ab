"""Fitting bags, together or one after another, into one model and its scores."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import torch
from numpy.typing import NDArray

from cgnn import config as configs
from cgnn import strict
from cgnn.config import Config, PUConfig
from cgnn.data.dataset import CrystalDataset
from cgnn.data.engines.choice import processors
from cgnn.data.prepare import Watch
from cgnn.data.records import SetAside
from cgnn.data.tables import write_set_aside
from cgnn.errors import CheckpointError, ConfigError, choose
from cgnn.files import write_json, write_text
from cgnn.train.checkpoint import MODEL_FILE, load_model, save_model
from cgnn.train.described import describe
from cgnn.train.ensembles.batched import can_batch
from cgnn.train.ensembles.ensemble import SIDE_BY_SIDE
from cgnn.train.ensembles.side_by_side import Report
from cgnn.train.pu.bag import vote
from cgnn.train.pu.duplicates import SAME_CRYSTAL, find_duplicates, write_duplicates
from cgnn.train.pu.group import DESCRIBED_FILE, Bags, Progress
from cgnn.train.pu.labels import Opening, later_ids, pu_target
from cgnn.train.pu.plan import PLAN_FILE, Plan
from cgnn.train.pu.scores import HELDOUT_FILE, PROGRESS_FILE, SCORES_FILE, Scores
from cgnn.train.pu.ways import PU_WAYS
from cgnn.train.run import check_folder
from cgnn.train.trust.assess import assessed
from cgnn.train.ways.transfer import with_hints

PU_FILE = "pu.json"
"""Stands in the folder of such a run and says how its bags are fitted."""
_FREE = ("pu.bags", "pu.stop_when", "pu.retries")
"""Settings that a resumed run may change: no bag depends on them."""


@dataclass(frozen=True)
class PURun:
    """A finished run, as it lies in its folder.

    Args:
        folder: Where it lies.
        config: Its settings.
        plan: Which crystals each bag saw.
        scores: Out-of-bag scores of the unlabelled crystals.
        heldout: Scores of the held-out positives, by all bags.
        progress: A row after each bag (`cgnn.train.pu.scores.standing`).
        set_aside: Crystals that were not used (only known to the call that fitted).
    """

    folder: Path
    config: Config
    plan: Plan
    scores: Scores
    heldout: Scores
    progress: list[dict[str, Any]]
    set_aside: tuple[SetAside, ...] = ()

    @classmethod
    def load(cls, folder: str | Path) -> PURun:
        """Read the folder of a finished run.

        Raises:
            ConfigError: It is none.
            CheckpointError: A file in it can't be read.
            DataError: Its scores can't be read.
        """
        folder = Path(folder)
        if not (folder / PU_FILE).is_file() or not (folder / SCORES_FILE).is_file():
            raise ConfigError(f"{folder}: no finished run of positive and unlabelled crystals (expected {SCORES_FILE})")
        return cls(
            folder,
            configs.load(folder / "config.yaml"),
            Plan.load(folder),
            Scores.read(folder / SCORES_FILE),
            Scores.read(folder / HELDOUT_FILE),
            [orjson.loads(line) for line in (folder / PROGRESS_FILE).read_bytes().splitlines()],
        )

    @property
    def model_file(self) -> Path:
        """The model: all bags, which predict their mean."""
        return self.folder / "best" / MODEL_FILE


def pu_fit(
    config: Config,
    folder: str | Path,
    resume: bool = False,
    side_by_side: str = "auto",
    workers: int = 0,
    report: Callable[[int], Report] | None = None,
    watch: Watch | None = None,
    tell: Callable[[dict[str, Any]], None] | None = None,
) -> PURun:
    r"""Fit bags of classifiers on positive and unlabelled crystals; score every crystal by those that did not see it.

    .. math:: \mathrm{CLscore}_i = \frac1{|B_i|} \sum_{b \in B_i} p_b(i), \quad B_i = \{b : i \notin \mathrm{drawn}_b\}

    Leaves ``scores.csv`` and ``heldout.csv``, ``progress.jsonl``, ``plan.json``, ``duplicates.csv``, the bags in
    ``bags/0``, ``bags/1``, ... and ``best/`` with one model file of all bags. Neither the number of processes nor
    where a run was interrupted changes a bit of these; bags fitted at once (``batched``) are others than those fitted
    alone, because they share their batches.

    Source: Jang et al., J. Am. Chem. Soc. 142, 18836 (2020), 10.1021/jacs.0c07384; Mordelet and Vert, Pattern
    Recognit. Lett. 37, 201 (2014), 10.1016/j.patrec.2013.06.010.

    Args:
        config: All settings; those of ``pu`` by default.
        folder: New or empty, unless a run is resumed.
        resume: Go on with the run in the folder; ``pu.bags`` and ``pu.stop_when`` may be others than before.
        side_by_side: Entry of `cgnn.train.ensembles.ensemble.SIDE_BY_SIDE`, or ``auto``.
        workers: Number of processes; 0 means one for each processor that this process may use.
        report: Gives, for a bag, what is called with each epoch's row.
        watch: Wraps the stream of crystals while graphs are built.
        tell: Called with the row of ``progress.jsonl`` after each bag.

    Raises:
        ConfigError: The folder holds something already, or the settings do not fit.
        DataError: The data can't be used: no such column, no labels, one class, too few crystals.
        CheckpointError: The folder holds a run of other settings or data.
        Stopped: SIGINT or SIGTERM arrived; the states were saved.
    """
    folder = Path(folder)
    pu = config.pu or PUConfig()
    check_folder(folder, resume)
    config = with_hints(config.alone.model_copy(update={"pu": pu}), folder if resume else None)
    way = _checked(config, pu, side_by_side, folder, resume)
    dataset = Opening(pu)(config, watch)
    plan = _planned(config, pu, dataset, folder)
    write_json(folder / PU_FILE, {"side_by_side": way})
    write_text(folder / "config.yaml", strict.dump(config))
    describe(dataset, config, folder / DESCRIBED_FILE)
    bags = Bags(config, pu, dataset, plan, folder, way == "batched")
    progress = Progress(bags, tell)
    for group in bags.groups():
        SIDE_BY_SIDE[way](replace(group, workers=workers, report=report, enough=progress.note))
        if way == "batched":
            for bag in group.members:
                vote(group.config, dataset, bags.place(bag.number), bags.made[bag.number])
                progress.note(bag.number)
        if progress.is_enough:
            break
    return _finished(bags, progress)


def _checked(config: Config, pu: PUConfig, side_by_side: str, folder: Path, resume: bool) -> str:
    """Check the settings, against those of a run that is resumed too; return how bags are fitted side by side."""
    pu_target(config)
    choose(PU_WAYS, pu.way, "way of learning")
    choose({"auto": None, **SIDE_BY_SIDE}, side_by_side, "way to fit bags side by side")
    if pu.way == "nnpu" and (pu.prior is None or config.transfer):
        raise ConfigError("pu.way nnpu: needs pu.prior, the share of positives among the unlabelled, and no transfer")
    if pu.way == "nnpu" and config.model.head != "layers":
        raise ConfigError("pu.way nnpu: not with model.head trees, which have a loss of their own")
    if config.train.devices * config.train.nodes > 1:
        raise ConfigError("train.devices: a bag is fitted on one device")
    begun = _begun(folder) if resume else None
    way = side_by_side if side_by_side != "auto" else begun or _auto(config, pu)
    if way == "batched" and (pu.way != "bagging" or not can_batch(config)):
        raise ConfigError(
            "batched: not with pu.way nnpu or spies, transfer, most of model.remedy, model.head trees, train.compile, "
            "train.tensorboard or train.devices"
        )
    if begun is None:
        if resume:
            warnings.warn(f"{folder}: holds no such run yet; it starts from the beginning", stacklevel=3)
        return way
    changed = strict.differences(configs.load(folder / "config.yaml"), config)
    old, new = changed.get("pu.bags", (0, 0))
    if way == "batched" and min(old, new) % pu.together:
        raise CheckpointError(
            f"{folder}: bags are fitted {pu.together} at once (pu.together), so {old} can't become {new}; "
            f"keep a multiple of {pu.together}"
        )
    changed = {key: values for key, values in changed.items() if key not in _FREE}
    if "batched" in (way, begun) and way != begun:
        changed["side by side"] = (begun, way)
    if changed:
        lines = "; ".join(f"{key} was {old!r}, is {new!r}" for key, (old, new) in changed.items())
        raise CheckpointError(f"{folder}: can't resume with other settings: {lines}")
    return way


def _begun(folder: Path) -> str | None:
    path = folder / PU_FILE
    if not path.exists():
        if (folder / "config.yaml").exists():
            raise ConfigError(f"{folder}: holds another kind of run; choose another --output")
        return None
    try:
        way = str(json.loads(path.read_text())["side_by_side"])
        choose(SIDE_BY_SIDE, way, "way to fit bags side by side")
        return way
    except (OSError, ValueError, KeyError, TypeError, ConfigError) as error:
        raise CheckpointError(f"{path}: could not be read: {error}") from None


def _auto(config: Config, pu: PUConfig) -> str:
    if config.train.device != "cpu" and torch.cuda.is_available():
        return "batched" if can_batch(config) and pu.way == "bagging" else "serial"
    return "processes" if processors() > 1 else "serial"


def _planned(config: Config, pu: PUConfig, dataset: CrystalDataset, folder: Path) -> Plan:
    """Plan the bags, or find the same plan again; tell which unlabelled crystals are like a positive."""
    (target,) = dataset.targets
    crystals, values = dataset.summaries(), dataset.label(target)
    positive = [dataset.ids[index] for index in np.flatnonzero(values == 1).tolist()]
    plan = Plan.make(pu, crystals, positive, later_ids(dataset.store, pu, target))
    if (folder / PLAN_FILE).exists():
        if Plan.load(folder) != plan:
            raise CheckpointError(f"{folder}: was begun on other crystals or labels; choose another --output")
        return plan
    duplicates = find_duplicates(crystals, positive)
    write_duplicates(folder / "duplicates.csv", duplicates)
    write_set_aside(folder / "set_aside.csv", dataset.set_aside)
    same = sum(entry.kind == SAME_CRYSTAL for entry in duplicates)
    if same:
        done = "they are set aside" if pu.duplicates == "set_aside" else "pu.duplicates: set_aside leaves them out"
        warnings.warn(
            f"{same} unlabelled crystals are the same as a positive under another id ({done}), and "
            f"{len(duplicates) - same} more share a positive's formula; all are listed in duplicates.csv",
            stacklevel=3,
        )
    plan.save(folder)
    return plan


def _finished(bags: Bags, progress: Progress) -> PURun:
    """Put the bags into one model file, and write the scores."""
    folder, dataset, plan = bags.folder, bags.dataset, bags.plan
    stored = [load_model(bags.place(bag) / "best" / MODEL_FILE) for bag in range(progress.tally.bags)]
    networks = [found.members[0] for found in stored]
    draws = [bags.draws[bag] for bag in range(len(stored))]
    seen = bags.indices({name for draw in draws for name in (*draw.train, *draw.val)})
    info = replace(
        stored[0].info,
        config=bags.config,
        elements=tuple(sorted(dataset.elements(seen))),
        summary={
            "by": f"{bags.pu.way} of {len(plan.positives)} positives and {plan.size} unlabelled each",
            "train": len(seen),
            "val": 0,
            "epochs": [found.info.summary["epoch"] for found in stored],
            "threads": stored[0].info.summary["threads"],
        },
    )
    first = {"train": bags.indices(draws[0].train), "val": np.array([], dtype=np.int64)}
    save_model(folder / "best" / MODEL_FILE, networks, assessed(networks, info, dataset, first))
    scores, heldout = progress.scores()
    heldout.write(folder / HELDOUT_FILE)
    scores.write(folder / SCORES_FILE)
    if not scores.votes.all():
        warnings.warn(
            f"{int((scores.votes == 0).sum())} unlabelled crystals were drawn by all {len(stored)} bags and have no "
            "score; --resume with more pu.bags gives them one",
            stacklevel=3,
        )
    _warn_of_equal_scores(np.concatenate([scores.clscore, heldout.clscore]), plan)
    return PURun(folder, bags.config, plan, scores, heldout, progress.rows, tuple(dataset.set_aside))


def _warn_of_equal_scores(clscore: NDArray[np.float64], plan: Plan) -> None:
    known = clscore[np.isfinite(clscore)]
    if len(known) > 1 and np.ptp(known) < 1e-9:
        warnings.warn(
            f"all crystals score {known[0]:.3g}: nothing was learned that tells positives from others; "
            f"{len(plan.positives)} training positives may be too few",
            stacklevel=4,
        )
