"""Scores without learning: how many of the nearest other compositions are positive."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from cgnn.data.summary import CrystalSummary, reduced_formula
from cgnn.train.pu.plan import Plan

Array = NDArray[np.float64]


def nearest_compositions(
    plan: Plan, crystals: Mapping[str, CrystalSummary], neighbours: int = 10
) -> tuple[Array, Array]:
    r"""Return the share of training positives among the crystals of nearest composition: the baseline to beat.

    Looked at are training positives and unlabelled crystals, but not the crystal itself, by the Euclidean distance of
    the shares of the elements. Polymorphs of one composition are equally near; where not all of them are among the
    nearest, they count by lot.

    Args:
        plan: Which crystals are positive, held out and unlabelled.
        crystals: Id -> what is known of the crystal.
        neighbours: How many to look at.

    Returns:
        Of the held-out positives (P,) and of the scored unlabelled crystals (U,), in the order of the plan.
    """
    from sklearn.neighbors import NearestNeighbors

    formulas = {name: reduced_formula(crystals[name]) for name in (*plan.positives, *plan.scored, *plan.heldout)}
    known = sorted({formulas[name] for name in (*plan.positives, *plan.scored)})
    row = {formula: number for number, formula in enumerate(known)}
    positive, all_known = (
        np.bincount([row[formulas[name]] for name in names], minlength=len(known)).astype(float)
        for names in (plan.positives, (*plan.positives, *plan.scored))
    )
    shares = _shares({formulas[name]: crystals[name] for name in formulas})
    search = NearestNeighbors(n_neighbors=min(neighbours + 1, len(known)), algorithm="brute")
    search.fit(np.stack([shares[formula] for formula in known]))

    def scores(names: Sequence[str], is_known: bool) -> Array:
        asked = sorted({formulas[name] for name in names})
        found = search.kneighbors(np.stack([shares[formula] for formula in asked]), return_distance=False)
        own = found == np.array([row.get(formula, -1) for formula in asked])[:, None]
        others = all_known[found] - (own if is_known else 0)
        taken = np.clip(neighbours - (np.cumsum(others, axis=1) - others), 0, others)
        part = np.divide(positive[found], others, out=np.zeros_like(others), where=others > 0)
        share = dict(zip(asked, (taken * part).sum(axis=1) / taken.sum(axis=1), strict=True))
        return np.array([share[formulas[name]] for name in names])

    return scores(plan.heldout, is_known=False), scores(plan.scored, is_known=True)


def _shares(crystals: Mapping[str, CrystalSummary]) -> dict[str, NDArray[np.float32]]:
    """Return the shares of all elements that occur (E,), by formula."""
    elements = sorted({element for crystal in crystals.values() for element in crystal.composition})
    place = {element: number for number, element in enumerate(elements)}
    found = {}
    for formula, crystal in crystals.items():
        share = np.zeros(len(elements), dtype=np.float32)
        for element, count in crystal.composition.items():
            share[place[element]] = count / sum(crystal.composition.values())
        found[formula] = share
    return found
