"""Crystal-likeness of new crystals, and bagging on positive and unlabelled crystals in scikit-learn's manner."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import NotFittedError

from cgnn.config import Config, PUConfig, build
from cgnn.data.records import Record, from_structures
from cgnn.errors import ConfigError, DataError
from cgnn.files import write_bytes
from cgnn.predict.predictions import Predictions
from cgnn.predict.predictor import Predictor
from cgnn.train.pu import PURun, Scores, pu_fit
from cgnn.train.pu.labels import pu_target
from cgnn.train.pu.scores import COLUMNS, THRESHOLD
from cgnn.train.run import Report

_TARGET = {"name": "synthesizable", "task": "binary"}
_LABEL = "is_positive"
_POSITIVE, _UNLABELLED = (1, True), (0, -1, False)


class Tables:
    """Tables of crystal-likeness scores of new crystals: the mean over all bags, and how far they are apart.

    Args:
        predictor: A model of bags.

    Raises:
        ConfigError: The model is none of positive and unlabelled crystals.
    """

    def __init__(self, predictor: Predictor) -> None:
        if predictor.info.config.pu is None:
            raise ConfigError("the model is none of positive and unlabelled crystals (expected what cgnn pu fit wrote)")
        self._name = pu_target(predictor.info.config).name
        self._votes = len(predictor.members)
        self.ids: list[str] = []
        """Of all crystals that tables were made of."""

    def __call__(self, found: Predictions) -> dict[str, Any]:
        """Return the table of some predictions, with the columns of ``scores.csv``."""
        number = len(found)
        self.ids += found.ids
        score = found.columns.get(self._name, np.zeros(0))
        spread = found.columns.get(f"{self._name}_spread", np.full(number, np.nan))
        return dict(zip(COLUMNS, (found.ids, score, spread, np.full(number, self._votes)), strict=True))


class PUBagging(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Bags of classifiers of positive against unlabelled crystals (`cgnn.train.pu.pu_fit`), as an estimator.

    After ``fit``:

    - ``clscore_``: score of each given crystal by the bags that did not see it (n,); ``nan`` for training positives,
      for crystals that can't be used, and where all bags saw it. Only where crystals were given, not a file.
    - ``scores_``, ``heldout_``: the same as tables (`cgnn.train.pu.Scores`), of the unlabelled and of the held-out.
    - ``n_bags_``, ``progress_``: how many bags there are, and what was known after each of them.
    - ``set_aside_``: crystals that can't be used, and why.
    - ``predictor_``: the model; ``classes_``: 0 and 1.

    Args:
        config: All settings; by default those of the package. Targets other than one of yes or no are replaced, and
            the settings below, where they are given, go before its ``pu``.
        way: Entry of `cgnn.train.pu.PU_WAYS`.
        bags: Their number.
        ratio: Unlabelled crystals drawn for each training positive.
        holdout: Share of the positives that no bag sees.
        duplicates: ``keep`` or ``set_aside``.
        stop_when: Standard error of the mean score at which no more bags are fitted.
        prior: Share of positives among the unlabelled, for ``nnpu``.
        side_by_side: How bags are fitted: ``auto``, ``serial``, ``processes`` or ``batched``.
        workers: Number of processes; 0 means one for each processor.
        folder: Where the run is left, and beside it ``<folder>.jsonl`` with the crystals; by default nowhere.
        resume: Go on with the run in the folder.
        random_state: Seed of draws and weights.

    Example:
        >>> bagging = PUBagging(bags=20).fit(structures, is_known_to_exist)  # doctest: +SKIP
        >>> bagging.score_samples(candidates)  # doctest: +SKIP
    """

    def __init__(
        self,
        config: Config | None = None,
        *,
        way: str | None = None,
        bags: int | None = None,
        ratio: float | None = None,
        holdout: float | None = None,
        duplicates: str | None = None,
        stop_when: float | None = None,
        prior: float | None = None,
        side_by_side: str = "auto",
        workers: int = 0,
        folder: str | Path | None = None,
        resume: bool = False,
        random_state: int | None = None,
    ) -> None:
        self.config = config
        self.way = way
        self.bags = bags
        self.ratio = ratio
        self.holdout = holdout
        self.duplicates = duplicates
        self.stop_when = stop_when
        self.prior = prior
        self.side_by_side = side_by_side
        self.workers = workers
        self.folder = folder
        self.resume = resume
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None, report: Callable[[int], Report] | None = None) -> PUBagging:
        """Fit the bags.

        Args:
            X: pymatgen structures or ASE atoms (list, Series), or the path of a file or folder.
            y: 1 (or true) for positive, 0 (or -1, false) for unlabelled, for each structure; None with a file, whose
                column ``pu.column`` tells.
            report: Gives, for a bag, what is called with each epoch's row.

        Raises:
            DataError: The crystals or labels can't be used.
            ConfigError: The settings do not fit.
        """
        with TemporaryDirectory(prefix="cgnn-pu-") as temporary:
            folder = Path(self.folder) if self.folder is not None else Path(temporary) / "run"
            if isinstance(X, str | Path):
                if y is not None:
                    raise DataError(f"y: the labels of a file stand in a column of it (pu.column); give none with {X}")
                settings, number = self._settings({"path": str(X)}, {}), 0
            else:
                # beside the run: a folder that is not empty is refused
                path = folder.with_name(f"{folder.name}.jsonl")
                number = _written(path, X, y)
                cache = {"cache": temporary} if self.folder is None else {}
                settings = self._settings({"path": str(path), **cache}, {"column": _LABEL, "labels": "explicit"})
            run = pu_fit(settings, folder, self.resume, self.side_by_side, self.workers, report)
            self._learn(run, number)
        return self

    def score_samples(self, X: Any) -> NDArray[np.float64]:
        """Return the crystal-likeness of new crystals, the mean over all bags (n,); ``nan`` for what can't be used.

        Crystals that the bags were trained on score too well; those of ``fit`` have theirs in ``clscore_``.
        """
        if not hasattr(self, "predictor_"):
            raise NotFittedError("PUBagging: call fit before asking for scores")
        found = self.predictor_.predict(X)
        scores = Tables(self.predictor_)(found)
        if found.set_aside:
            first = found.set_aside[0]
            warnings.warn(f"{len(found.set_aside)} crystals can't be used, such as {first.reason}", stacklevel=2)
        if isinstance(X, str | Path):
            return np.asarray(scores["clscore"], dtype=np.float64)
        whole = np.full(len(found) + len(found.set_aside), np.nan)
        whole[[_place(name) for name in found.ids]] = scores["clscore"]
        return whole

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Return the scores of class 0 and class 1 (n, 2); they are calibrated as the balanced bags are."""
        positive = self.score_samples(X)
        return np.stack([1 - positive, positive], axis=1)

    def predict(self, X: Any) -> NDArray[np.int64]:
        """Return 1 for crystals whose score is 0.5 at least, 0 for others (n,)."""
        return (self.score_samples(X) >= THRESHOLD).astype(np.int64)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        r"""Return the score of Lee and Liu, which needs no negatives.

        .. math:: r^2 / P(\hat y = 1)

        with the recall r on the positives among the crystals.

        Source: Lee and Liu, ICML 2003, section 4.

        Args:
            X: Crystals.
            y: 1 for positive, 0 for unlabelled (n,).
            sample_weight: How much each counts (n,).
        """
        said, positive = self.predict(X).astype(bool), _labels(y)
        weight = np.ones(len(said)) if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
        flagged = float(np.average(said, weights=weight))
        recall = float(np.average(said[positive], weights=weight[positive]))
        return recall**2 / flagged if flagged else 0.0

    def _settings(self, data: dict[str, Any], labels: dict[str, Any]) -> Config:
        """Return all settings: those of the configuration, then those of the estimator, then those of the data."""
        values: dict[str, Any] = {"targets": [_TARGET]} if self.config is None else self.config.model_dump(mode="json")
        try:
            if self.config is not None:
                pu_target(self.config)
        except ConfigError:
            values["targets"] = [_TARGET]
        own = {name: getattr(self, name) for name in PUConfig.model_fields if getattr(self, name, None) is not None}
        values["data"] = {**values.get("data", {}), **data}
        values["pu"] = {**(values.get("pu") or {}), **own, **labels}
        if self.random_state is not None:
            values["pu"]["seed"] = self.random_state
            values["train"] = {**values.get("train", {}), "seed": self.random_state}
        return build(values, source="PUBagging")

    def _learn(self, run: PURun, number: int) -> None:
        """Keep what was learned, so that the folder may go."""
        self.predictor_ = Predictor.load(run.folder, run.config.train.device)
        self.classes_ = np.array([0, 1])
        self.scores_, self.heldout_, self.progress_ = run.scores, run.heldout, run.progress
        self.n_bags_, self.set_aside_ = len(run.progress), list(run.set_aside)
        self.clscore_ = np.full(number, np.nan)
        for table in (run.scores, run.heldout) if number else ():
            _place_scores(self.clscore_, table)


def _place_scores(whole: NDArray[np.float64], table: Scores) -> None:
    whole[[_place(name) for name in table.ids]] = table.clscore


def _place(name: str) -> int:
    """Return the place of a crystal among those given, from the id that `from_structures` gives it."""
    return int(name.rpartition("-")[2])


def _labels(y: Any) -> NDArray[np.bool_]:
    values = np.asarray(y).tolist()
    bad = [(place, value) for place, value in enumerate(values) if value not in (*_POSITIVE, *_UNLABELLED)]
    if bad:
        first = ", ".join(f"y[{place}] is {value!r}" for place, value in bad[:3])
        raise DataError(f"y: expected 1 (positive) and 0 or -1 (unlabelled), but {first}")
    return np.array([value in _POSITIVE for value in values], dtype=bool)


def _written(path: Path, structures: Any, y: Any) -> int:
    """Write crystals with their labels into a file; return how many there are."""
    if y is None:
        raise DataError("y: give 1 (positive) or 0 (unlabelled) for each crystal")
    positive = _labels(y)
    given = list(from_structures(structures))
    if len(given) != len(positive):
        raise DataError(f"y: {len(positive)} labels for {len(given)} crystals")
    lines: Sequence[bytes] = [
        orjson.dumps(
            {
                "material_id": item.material_id or f"crystal-{place}",
                "structure": item.structure.as_dict() if isinstance(item, Record) else None,
                _LABEL: bool(positive[place]),
            },
            option=orjson.OPT_SERIALIZE_NUMPY,
        )
        for place, item in enumerate(given)
    ]
    write_bytes(path, b"\n".join(lines) + b"\n")
    return len(given)
