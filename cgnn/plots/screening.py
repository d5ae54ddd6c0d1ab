"""Pictures of a screening: how many crystals pass each stage, and a quantity on the periodic table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from cgnn.errors import DataError, unknown
from cgnn.plots.style import COLORS, FAINT, INK, drawing, label, single_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

_PERIODS = (
    "H . . . . . . . . . . . . . . . . He",
    "Li Be . . . . . . . . . . B C N O F Ne",
    "Na Mg . . . . . . . . . . Al Si P S Cl Ar",
    "K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr",
    "Rb Sr Y Zr Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe",
    "Cs Ba . Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi Po At Rn",
    "Fr Ra",
    "",
    ". . La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu",
    ". . Ac Th Pa U Np Pu Am Cm Bk Cf Es Fm Md No Lr",
)
PLACES = {
    symbol: (column, row)
    for row, line in enumerate(_PERIODS)
    for column, symbol in enumerate(line.split())
    if symbol != "."
}
"""Element -> column and row of the periodic table, with the lanthanides and actinides below it."""


def funnel(stages: Sequence[tuple[str, int]], title: str = "Screening") -> Figure:
    """Draw how many crystals are left after each stage, on a logarithmic axis.

    Args:
        stages: Name of each stage and the crystals it leaves, from first to last.
        title: Above the picture.

    Raises:
        DataError: No stage, a negative count, or a stage that leaves more than came in.
    """
    counts = [count for _, count in stages]
    if not counts or min(counts) < 0 or any(after > before for before, after in pairwise(counts)):
        raise DataError(f"funnel: expected stages that leave fewer and fewer crystals, got {counts}")
    with drawing(7.0, 0.9 + 0.5 * len(stages)) as figure:
        axes = single_axes(figure)
        places = list(range(len(stages)))
        widths = np.maximum(counts, 0.7)  # nothing left still shows where the stage is
        axes.barh(places, widths, left=0.5, height=0.72, color=COLORS[0], alpha=0.85)
        for place, count in zip(places, counts, strict=True):
            share = f"  ({count / counts[place - 1]:.1%})" if place and counts[place - 1] else ""
            axes.text(widths[place] * 1.12 + 0.5, place, f"{count:,}{share}", va="center", fontsize=9)
        axes.set_yticks(places, [name for name, _ in stages])
        axes.invert_yaxis()
        axes.set(xscale="log", xlim=(0.5, max(counts[0], 1) * 30), title=title, xlabel="crystals left")
        axes.grid(False, axis="y")
    return figure


def periodic_table(
    values: Mapping[str, float],
    quantity: str,
    unit: str = "",
    *,
    counts: Mapping[str, int] | None = None,
    title: str | None = None,
) -> Figure:
    """Draw a quantity of each element on the periodic table, such as a mean error or a share of hits.

    Args:
        values: Element -> value; elements that lack or are ``nan`` stay grey.
        quantity: What it is.
        unit: Its unit.
        counts: Element -> crystals it was taken from, written below the value.
        title: By default the quantity.

    Raises:
        DataError: No such element, or no value.
    """
    for symbol in values:
        if symbol not in PLACES:
            raise DataError(f"periodic table: {unknown(symbol, PLACES, 'element')}")
    known = {symbol: float(value) for symbol, value in values.items() if np.isfinite(value)}
    if not known:
        raise DataError("periodic table: no values")
    with drawing(11.0, 6.3) as figure:
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import Normalize

        axes = single_axes(figure)
        low, high = min(known.values()), max(known.values())
        scale = ScalarMappable(Normalize(low, high if high > low else low + 1), "viridis")
        for symbol in PLACES:
            _element(axes, symbol, known.get(symbol), scale, (counts or {}).get(symbol))
        axes.set(xlim=(-0.05, 18.05), ylim=(10.05, -0.05), aspect="equal", title=title or quantity)
        axes.axis("off")
        figure.colorbar(scale, ax=axes, label=label(quantity, unit), shrink=0.7, pad=0.01)
    return figure


def _element(axes: Axes, symbol: str, value: float | None, scale: ScalarMappable, count: int | None) -> None:
    from matplotlib.patches import Rectangle

    x, y = PLACES[symbol]
    color = (0.94, 0.94, 0.94, 1.0) if value is None else tuple(scale.to_rgba(np.array([value]))[0])
    is_dark = float(np.dot(color[:3], (0.299, 0.587, 0.114))) < 0.55  # how bright it looks
    ink = FAINT if value is None else "white" if is_dark else INK
    axes.add_patch(Rectangle((x + 0.03, y + 0.03), 0.94, 0.94, facecolor=color, edgecolor="none"))
    axes.text(x + 0.5, y + 0.33, symbol, ha="center", va="center", fontsize=11, weight="bold", color=ink)
    if value is not None:
        axes.text(x + 0.5, y + 0.63, f"{value:.3g}", ha="center", va="center", fontsize=7.5, color=ink)
    if count is not None:
        axes.text(x + 0.5, y + 0.85, f"{count:,}", ha="center", va="center", fontsize=6, color=ink)
