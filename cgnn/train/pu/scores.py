"""Crystal-likeness scores: the mean vote of the bags that did not see a crystal."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cgnn.data.tables import TableWriter
from cgnn.errors import DataError
from cgnn.train.loop import Indices
from cgnn.train.pu.evaluation import SHARE, binomial_error, recall_at

SCORES_FILE, HELDOUT_FILE, PROGRESS_FILE = "scores.csv", "heldout.csv", "progress.jsonl"
COLUMNS = ("material_id", "clscore", "clscore_std", "votes")
THRESHOLD = 0.5


@dataclass(frozen=True)
class Scores:
    """Scores of some crystals.

    Args:
        ids: Their ids, sorted (n,).
        clscore: Mean probability over the bags that voted (n,); ``nan`` where none did.
        clscore_std: Standard deviation of these (n,); ``nan`` below two votes.
        votes: Number of bags that voted (n,).
    """

    ids: tuple[str, ...]
    clscore: NDArray[np.float64]
    clscore_std: NDArray[np.float64]
    votes: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ids)

    def columns(self) -> dict[str, Any]:
        """Return the columns of the table."""
        return dict(zip(COLUMNS, (self.ids, self.clscore, self.clscore_std, self.votes), strict=True))

    def write(self, path: Path) -> None:
        """Write the table as CSV or Parquet; a score without a vote is an empty cell."""
        with TableWriter(path, {}) as table:
            table.add(self.columns())

    @classmethod
    def read(cls, path: str | Path) -> Scores:
        """Read a CSV table.

        Raises:
            DataError: There is none, or it is no table of scores.
        """
        try:
            with open(path, encoding="utf-8", newline="") as handle:
                rows = list(csv.DictReader(handle))
            numbers = {name: np.array([float(row[name] or "nan") for row in rows]) for name in COLUMNS[1:]}
            ids = tuple(row["material_id"] for row in rows)
            return cls(ids, numbers["clscore"], numbers["clscore_std"], numbers["votes"].astype(np.int64))
        except (OSError, KeyError, ValueError, TypeError) as error:
            raise DataError(f"{path}: no table of scores ({', '.join(COLUMNS)}) that can be read: {error}") from None


class Tally:
    """Adds up votes, bag after bag.

    Args:
        number: Crystals of the data set n.
    """

    def __init__(self, number: int) -> None:
        self.bags = 0
        self._votes = np.zeros(number, dtype=np.int64)
        self._mean = np.zeros(number)
        self._squares = np.zeros(number)  # sum of squared differences from the mean

    def add(self, indices: Indices, probability: NDArray[np.float64]) -> None:
        """Add what a bag says of some crystals, each at most once.

        Source: Welford, Technometrics 4, 419 (1962), 10.1080/00401706.1962.10490022.
        """
        self.bags += 1
        self._votes[indices] += 1
        before = probability - self._mean[indices]
        self._mean[indices] += before / self._votes[indices]
        self._squares[indices] += before * (probability - self._mean[indices])

    def scores(self, indices: Indices, ids: Sequence[str]) -> Scores:
        """Return the scores of some crystals, sorted by id.

        Args:
            indices: Which (n,).
            ids: The ids of all crystals of the data set.
        """
        ordered = np.array(sorted(indices.tolist(), key=lambda index: ids[index]), dtype=np.int64)
        votes = self._votes[ordered]
        mean = np.where(votes > 0, self._mean[ordered], np.nan)
        spread = np.where(votes > 1, np.sqrt(self._squares[ordered] / np.maximum(votes - 1, 1)), np.nan)
        return Scores(tuple(ids[index] for index in ordered.tolist()), mean, spread, votes)


def standing(tally: Tally, unlabelled: Scores, heldout: Scores) -> dict[str, float | int]:
    r"""Return what is known after some bags.

    With the standard deviation :math:`s_i` of the :math:`n_i` votes on crystal i, the ``score_error`` is the mean of
    :math:`s_i / \sqrt{n_i}` over the unlabelled crystals with two votes at least; ``undecided`` counts the others.
    ``recall`` and ``flagged`` (unlabelled) are those at a score of 0.5, ``recall_at_share`` that where 20.8 % of the
    unlabelled are flagged.
    The error of a recall r on P held-out positives is :math:`\sqrt{r (1 - r) / P}`.

    Args:
        tally: The votes.
        unlabelled: Out-of-bag scores of the unlabelled crystals.
        heldout: Scores of the held-out positives.
    """
    is_decided = unlabelled.votes > 1
    errors = unlabelled.clscore_std[is_decided] / np.sqrt(unlabelled.votes[is_decided])
    recall, count = float((heldout.clscore >= THRESHOLD).mean()), len(heldout)
    voted = unlabelled.clscore[unlabelled.votes > 0]
    row: dict[str, float | int] = {"bags": tally.bags, "undecided": int((~is_decided).sum())}
    if len(errors):
        row["score_error"] = float(errors.mean())
    row |= {"recall": recall, "recall_error": binomial_error(recall, count)}
    if len(voted):
        at_share = float(recall_at(heldout.clscore, voted, SHARE))
        row["flagged"] = float((voted >= THRESHOLD).mean())
        row |= {"recall_at_share": at_share, "recall_at_share_error": binomial_error(at_share, count)}
    return row


def is_good_enough(row: Mapping[str, float | int], stop_when: float | None) -> bool:
    """Tell whether no more bags are needed: every score has two votes, and their error is small."""
    return stop_when is not None and not row["undecided"] and row.get("score_error", np.inf) <= stop_when
