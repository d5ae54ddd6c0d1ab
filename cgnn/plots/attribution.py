"""Pictures of what a prediction rests on: the crystal with its atoms and bonds coloured by their parts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from cgnn.plots.crystal import draw_atoms, draw_cell, draw_lines, draw_scale_bar
from cgnn.plots.style import Array, drawing, label, words

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pymatgen.core import Structure

    from cgnn.predict.explain import Explanation

_MAP = "RdBu_r"
MOST_BONDS = 60
"""So many bonds are drawn, those with the largest parts."""


def explanation_picture(structure: Structure, explanation: Explanation, *, title: str | None = None) -> Figure:
    """Draw a crystal twice: its atoms coloured by their parts of a value, and its bonds by theirs.

    Red raises the value, blue lowers it; each picture has its own scale, symmetric about zero.

    Args:
        structure: The crystal, with its atoms in the order of the explanation.
        explanation: What the value rests on.
        title: By default the formula, the target and its value.
    """
    from pymatgen.util.string import unicodeify

    bonds = explanation.bonds()
    starts, vectors = bonds.starts[:MOST_BONDS], bonds.vectors[:MOST_BONDS]
    grey = np.full((len(structure), 3), 0.85)
    with drawing(11.0, 5.0) as figure:
        left, right = figure.subplots(1, 2)
        atom_shades = _scale(left, explanation.atoms.parts, "parts of the atoms", explanation.unit)
        bond_shades = _scale(right, bonds.parts[:MOST_BONDS], "parts of the bonds", explanation.unit)
        draw_atoms(left, structure, np.zeros((0, 3)), atom_shades, is_named=True)
        if len(starts):
            draw_lines(right, starts, starts + vectors, bond_shades, width=2.6)
        draw_atoms(right, structure, starts + vectors, grey, is_named=True)
        for axes in (left, right):
            draw_cell(axes, structure.lattice.matrix)
            draw_scale_bar(axes)
            axes.set_aspect("equal")
            axes.set_axis_off()
        value, name = explanation.atoms.value, words(explanation.target.name)
        formula = unicodeify(structure.reduced_formula)
        text = f"{formula}, {name}: {value:.3g} {explanation.unit}".rstrip()
        figure.suptitle(title or text, x=0.01, ha="left", weight="bold")
    return figure


def _scale(axes: Axes, parts: ArrayLike, quantity: str, unit: str) -> Array:
    """Return the colour (n, 3) of each part, and draw the scale of colours beside the axes."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    values = np.asarray(parts, dtype=np.float64)
    largest = float(np.abs(values).max(initial=0.0)) or 1.0
    mapping: Any = ScalarMappable(Normalize(-largest, largest), _MAP)
    axes.figure.colorbar(mapping, ax=axes, label=label(quantity, unit), shrink=0.7, pad=0.02)
    return np.asarray(mapping.to_rgba(values), dtype=np.float64)[:, :3]
