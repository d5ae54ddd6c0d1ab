"""Draws of what crystals are ranked by: the same points for each crystal, so that the order depends on no seed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from cgnn.physics import RELATIONS, lognormal_samples
from cgnn.physics.relations import INPUTS
from cgnn.screen.chunk import Chunk, Known, Moduli

Array = NDArray[np.float64]

DRAWS = 200
"""Of a predicted property."""


def moduli_draws(chunk: Chunk, moduli: Moduli) -> tuple[Array, Array]:
    """Return joint draws of bulk and shear moduli (GPa), each (n, draws).

    The spreads that models state for moduli learned as logarithms are taken for those of the logarithms, which for
    these they are (`cgnn.physics.lognormal_samples`).
    """
    columns = chunk.columns
    return lognormal_samples(
        columns[moduli.bulk],
        columns[moduli.shear],
        columns[f"{moduli.bulk}_std"],
        columns[f"{moduli.shear}_std"],
        moduli.correlation,
        moduli.draws,
    )


def has_errors(name: str, known: Known) -> bool:
    """Say whether draws of a column tell more than its value."""
    return name in known.logarithmic or known.moduli.get(name, ("", "", None))[2] is not None


def draws_of(name: str, chunk: Chunk, known: Known) -> Array:
    """Return draws of a column (n, draws); the values themselves (n, 1) where nothing is known of their errors."""
    values = np.asarray(chunk.columns[name], dtype=np.float64)[:, None]
    if name in known.logarithmic:
        spread = np.asarray(chunk.columns[f"{name}_std"], dtype=np.float64)[:, None]
        points = norm.ppf((np.arange(DRAWS) + 0.5) / DRAWS)
        if not known.logarithmic[name]:
            return np.asarray(values + spread * points)
        return np.asarray(values * np.exp(np.arcsinh(spread / values) * points))
    moduli = known.moduli.get(name, ("", "", None))[2]
    return values if moduli is None else _derived(name, chunk, moduli)


def _derived(name: str, chunk: Chunk, moduli: Moduli) -> Array:
    bulk, shear = moduli_draws(chunk, moduli)
    inputs = {"bulk": bulk, "shear": shear}
    relation = RELATIONS[name]
    for need in relation.needs:
        if need in INPUTS and need not in inputs:
            inputs[need] = np.asarray(chunk.columns[need], dtype=np.float64)[:, None]
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        drawn = relation.function(*(inputs[need] for need in relation.needs))
    return np.array(np.broadcast_to(drawn, bulk.shape))
