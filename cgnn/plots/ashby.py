"""Ashby diagram of hardness against toughness: what it shows, and the picture (the page: `cgnn.plots.ashby_page`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from cgnn.errors import DataError, choose
from cgnn.physics import RELATIONS
from cgnn.physics.ashby import INDICES, pareto_front
from cgnn.plots.style import COLORS, DASHED, FAINT, INK, Array, drawing, label, plain_log, single_axes, words

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MANY = 2000
"""Points from which on the picture shows density instead of single points."""
NAMED = 24
"""So many of the short list get a name in the picture."""

KNOWN: dict[str, tuple[float, float, float]] = {
    "diamond": (443, 535, 5.67),
    "c-BN": (376, 382, 5.905),
    "SiC": (222, 190, 10.35),
    "Al2O3": (254, 163, 8.49),
    "Si": (98, 66.5, 20.02),
}
"""Known material -> K, G (GPa) and volume per atom (Å³), from which its place follows by the same relations."""

Limits = tuple[tuple[float, float], tuple[float, float]]
"""Ends of both axes."""


@dataclass(frozen=True)
class Materials:
    """What an Ashby diagram shows of n crystals.

    Args:
        ids: Their ids (n,).
        hardness: GPa (n,); what is not above zero or not finite is left out.
        toughness: MPa·m^½ (n,).
        formulas: (n,), ``()`` where unknown.
        hardness_band: Ends of a band (2, n), such as p16 and p84.
        toughness_band: Likewise.
        relations: Entries of `RELATIONS` that gave toughness and hardness; the known materials are placed by them.
        details: What the page says besides, such as ``"K (GPa)"`` -> values (n,).
    """

    ids: Sequence[str]
    hardness: ArrayLike
    toughness: ArrayLike
    formulas: Sequence[str] = ()
    hardness_band: ArrayLike | None = None
    toughness_band: ArrayLike | None = None
    relations: tuple[str, str] = ("toughness_mo", "hardness_mo")
    details: Mapping[str, ArrayLike] = field(default_factory=dict)

    def points(self) -> tuple[Array, Array]:
        """Return toughness and hardness (n,), both ``nan`` where they can't stand on logarithmic axes.

        Raises:
            DataError: Columns of different lengths, or nothing to show.
        """
        x, y = (np.asarray(values, dtype=np.float64).copy() for values in (self.toughness, self.hardness))
        others = [len(np.asarray(values)) for values in self.details.values()]
        sizes = {len(x), len(y), len(self.ids), len(self.formulas) or len(x), *others}
        if len(sizes) > 1:
            raise DataError(f"Ashby diagram: expected columns of equal length, got {sorted(sizes)}")
        bad = ~(np.isfinite(x) & np.isfinite(y) & (x > 0) & (y > 0))
        if bad.all():
            raise DataError("Ashby diagram: no crystal with a hardness and a toughness above 0")
        x[bad] = y[bad] = np.nan
        return x, y

    def name(self, row: int) -> str:
        """Return what a crystal is called: its formula, or its id where that is not known."""
        return (self.formulas[row] if len(self.formulas) else "") or self.ids[row]

    def known(self) -> dict[str, tuple[float, float]]:
        """Return toughness and hardness of the known materials."""
        places = {}
        for name, (bulk, shear, volume) in KNOWN.items():
            given = {"bulk": bulk, "shear": shear, "volume_per_atom": volume}
            x, y = (RELATIONS[relation] for relation in self.relations)
            places[name] = (
                float(x.function(*(given[need] for need in x.needs))),
                float(y.function(*(given[need] for need in y.needs))),
            )
        return places

    def bars(self, rows: Any) -> tuple[Array | None, Array | None]:
        """Return how far the ends of the bands of some crystals lie from them, of toughness and of hardness (2, m).

        Zero where an end is unknown or on the wrong side, None where there are no bands.
        """
        x, y = self.points()
        return _lengths(self.toughness_band, x, rows), _lengths(self.hardness_band, y, rows)


def _lengths(band: ArrayLike | None, at: Array, rows: Any) -> Array | None:
    if band is None:
        return None
    low, high = np.asarray(band, dtype=np.float64)
    return np.nan_to_num(np.maximum([at[rows] - low[rows], high[rows] - at[rows]], 0.0))


def ashby(
    materials: Materials, short: Sequence[int] = (), index: str = "wear_resistance", title: str | None = None
) -> Figure:
    """Draw hardness against toughness, with the Pareto front, known materials and guide lines of an index.

    Args:
        materials: All crystals; from `MANY` on they are drawn as density.
        short: Rows of the short list, the best first. They get a panel of their own with their names and, where bands
            are known, error bars.
        index: A material index of hardness and toughness out of `cgnn.physics.ashby.INDICES`.
        title: By default the number of crystals.

    Raises:
        DataError: Nothing to show.
        ConfigError: No such index.
    """
    x, y = materials.points()
    shown = np.flatnonzero(np.isfinite(x))
    chosen = np.array([row for row in short if np.isfinite(x[row])], dtype=np.int64)
    with drawing(12.4 if len(chosen) else 7.4, 5.8) as figure:
        if len(chosen):
            axes, near = figure.subplots(1, 2, width_ratios=(1.25, 1))
        else:
            axes, near = single_axes(figure), None
        limits = whole_limits(materials)
        _cloud(figure, axes, x[shown], y[shown], limits)
        _ground(axes, materials, index, limits, title or f"{len(shown):,} crystals")
        axes.plot(x[chosen], y[chosen], linestyle="", marker="s", markersize=3.5, color=COLORS[2], label="short list")
        axes.legend(loc="lower right")
        if near is not None:
            _short_list(near, materials, chosen, index)
    return figure


def _ground(axes: Axes, materials: Materials, index: str, limits: Limits, title: str) -> None:
    """Draw what both panels have: axes, guide lines, the front, the known materials."""
    axes.set(xlim=limits[0], ylim=limits[1], title=title)
    plain_log(axes, "x", "y")
    for number, (along, line) in enumerate(guide_lines(index, *limits)):
        text = f"equal {words(index)}" if not number else None
        axes.plot(along, line, color=FAINT, linewidth=0.8, linestyle=DASHED, label=text, zorder=1.5)
    x, y = materials.points()
    front = pareto_front([x, y])
    axes.plot(x[front], y[front], color=COLORS[1], marker="o", markersize=3.5, linewidth=1.1, label="Pareto front")
    for name, place in materials.known().items():
        axes.plot(*place, marker="D", markersize=5.5, color="white", markeredgecolor=INK, linestyle="", zorder=5)
        if all(low < value < high for value, (low, high) in zip(place, limits, strict=True)):
            _name(axes, name, *place)
    axes.set_xlabel(label("fracture toughness", r"MPa·m$^{1/2}$"))
    axes.set_ylabel(label("Vickers hardness", RELATIONS[materials.relations[1]].unit))


def whole_limits(materials: Materials) -> Limits:
    """Return limits that hold the known materials and all crystals but the softest twentieth."""
    known = np.array(list(materials.known().values()))
    found = []
    for values, marks in zip(materials.points(), known.T, strict=True):
        low = min(float(np.nanquantile(values, 0.05)), float(marks.min())) / 1.3
        found.append((low, max(float(np.nanmax(values)), float(marks.max())) * 1.35))
    return found[0], found[1]


def _cloud(figure: Figure, axes: Axes, x: Array, y: Array, limits: Limits) -> None:
    if len(x) < MANY:
        axes.plot(x, y, linestyle="", marker="o", markersize=3.5, color=COLORS[0], alpha=0.55, markeredgewidth=0)
        return
    (left, right), (bottom, top) = np.log10(limits).tolist()
    extent = (left, right, bottom, top)
    inside = (x >= limits[0][0]) & (y >= limits[1][0])
    cells = axes.hexbin(
        x[inside], y[inside], xscale="log", yscale="log", gridsize=70, extent=extent, bins="log", mincnt=1, cmap="Blues"
    )
    figure.colorbar(cells, ax=axes, label="crystals per cell", pad=0.02, shrink=0.85)


def guide_lines(name: str, wide: tuple[float, float], tall: tuple[float, float]) -> list[tuple[Array, Array]]:
    """Return lines of equal index through four points of the diagonal of the diagram."""
    rule = choose(INDICES, name, "material index")
    ends = np.geomspace(*wide, 2)
    lines = []
    for part in (0.35, 0.55, 0.75, 0.95):
        middle = {key: a ** (1 - part) * b**part for key, (a, b) in (("toughness", wide), ("hardness", tall))}
        lines.append((ends, rule.guide_line(float(rule.value(middle)), "toughness", "hardness", ends)))
    return lines


def _short_list(axes: Axes, materials: Materials, rows: Any, index: str) -> None:
    """Draw the surroundings of the short list, with error bars, and names at the right side."""
    x, y = materials.points()
    bars = materials.bars(rows)
    limits = (_around(x[rows], bars[0]), _around(y[rows], bars[1]))
    count = f"the first {NAMED} of {len(rows)}" if len(rows) > NAMED else f"all {len(rows)}"
    _ground(axes, materials, index, limits, f"short list, {count} named")
    axes.plot(x, y, linestyle="", marker="o", markersize=2.5, color=COLORS[0], alpha=0.3, markeredgewidth=0, zorder=1)
    axes.errorbar(
        x[rows], y[rows], xerr=bars[0], yerr=bars[1], linestyle="", marker="s", markersize=4.5, color=COLORS[2],
        elinewidth=0.7, capsize=1.5, alpha=0.85, zorder=4,
    )  # fmt: skip
    _names_beside(axes, materials, rows[:NAMED], y)


def _around(values: Array, bars: Array | None) -> tuple[float, float]:
    """Return limits around points and their bars; a bar that reaches to zero counts to a third of its point."""
    low, high = (values, values) if bars is None else (values - bars[0], values + bars[1])
    return float(np.maximum(low, values / 3).min() / 1.12), float(high.max() * 1.12)


def _names_beside(axes: Axes, materials: Materials, rows: Any, y: Array) -> None:
    """Write rank and name of each at the right side, at its height where there is room, with a line to it."""
    from pymatgen.util.string import unicodeify

    x = materials.points()[0]
    low, high = np.log10(axes.get_ylim())
    order = np.argsort(y[rows], kind="stable")
    heights = _spread((np.log10(y[rows][order]) - low) / (high - low), gap=0.041)
    for place, height in zip(order.tolist(), heights, strict=True):
        row = int(rows[place])
        formula = unicodeify(materials.name(row)) if len(materials.formulas) else materials.name(row)
        axes.annotate(
            f"{place + 1}  {formula}",
            (x[row], y[row]),
            xytext=(1.04, height),
            textcoords="axes fraction",
            fontsize=8,
            color=COLORS[2],
            va="center",
            arrowprops={"arrowstyle": "-", "color": FAINT, "linewidth": 0.4},
            annotation_clip=False,
            zorder=3,
        )


def _spread(wanted: Array, gap: float) -> Array:
    """Return heights (0 to 1) near the wanted ones, which ascend, with a gap between each two."""
    found = wanted.copy()
    for place in range(1, len(found)):
        found[place] = max(found[place], found[place - 1] + gap)
    limit = 1.0
    for place in range(len(found) - 1, -1, -1):
        found[place] = min(found[place], limit)
        limit = found[place] - gap
    return found


def _name(axes: Axes, text: str, x: float, y: float) -> None:
    axes.annotate(
        text,
        (x, y),
        xytext=(-5, 6),
        textcoords="offset points",
        ha="right",
        fontsize=8,
        color=INK,
        zorder=6,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.6, "pad": 0.5},
    )
