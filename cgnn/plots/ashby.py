"""Ashby diagram of hardness against toughness: a picture, and a page that answers to the mouse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from cgnn.errors import DataError, MissingPackageError, choose
from cgnn.files import write_text
from cgnn.physics import RELATIONS
from cgnn.physics.ashby import INDICES, pareto_front
from cgnn.plots.style import COLORS, DASHED, FAINT, INK, Array, drawing, label, plain_log, single_axes, words

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MANY = 2000
"""Points from which on the picture shows density instead of single points."""

KNOWN: dict[str, tuple[float, float, float]] = {
    "diamond": (443, 535, 5.67),
    "c-BN": (376, 382, 5.905),
    "SiC": (222, 190, 10.35),
    "Al2O3": (254, 163, 8.49),
    "Si": (98, 66.5, 20.02),
}
"""Known material -> K, G (GPa) and volume per atom (Å³), from which its place follows by the same relations."""

HARDNESS, TOUGHNESS = "hardness_mo", "toughness_mo"


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
    """

    ids: Sequence[str]
    hardness: ArrayLike
    toughness: ArrayLike
    formulas: Sequence[str] = ()
    hardness_band: ArrayLike | None = None
    toughness_band: ArrayLike | None = None

    def points(self) -> tuple[Array, Array]:
        """Return toughness and hardness (n,), both ``nan`` where they can't stand on logarithmic axes.

        Raises:
            DataError: Columns of different lengths, or nothing to show.
        """
        x, y = (np.asarray(values, dtype=np.float64).copy() for values in (self.toughness, self.hardness))
        sizes = {len(x), len(y), len(self.ids), len(self.formulas) or len(x)}
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


def known_points() -> dict[str, tuple[float, float]]:
    """Return toughness and hardness of the known materials."""
    return {
        name: (
            float(RELATIONS[TOUGHNESS].function(bulk, shear, volume)),
            float(RELATIONS[HARDNESS].function(bulk, shear)),
        )
        for name, (bulk, shear, volume) in KNOWN.items()
    }


def ashby(
    materials: Materials, short: Sequence[int] = (), index: str = "wear_resistance", title: str | None = None
) -> Figure:
    """Draw hardness against toughness, with the Pareto front, known materials and guide lines of an index.

    Args:
        materials: All crystals; from `MANY` on they are drawn as density.
        short: Rows of the short list, which get a name and, where bands are known, error bars.
        index: A material index of hardness and toughness out of `cgnn.physics.ashby.INDICES`.
        title: By default the number of crystals.

    Raises:
        DataError: Nothing to show.
        ConfigError: No such index.
    """
    x, y = materials.points()
    shown = np.flatnonzero(np.isfinite(x))
    with drawing(7.4, 5.6) as figure:
        axes = single_axes(figure)
        limits = _limits(x[shown], y[shown])
        axes.set(xlim=limits[0], ylim=limits[1], title=title or f"{len(shown):,} crystals")
        _cloud(figure, axes, x[shown], y[shown])
        plain_log(axes, "x", "y")
        _guides(axes, index, *limits)
        front = pareto_front([x, y])
        axes.plot(x[front], y[front], color=COLORS[1], marker="o", markersize=3.5, linewidth=1.1, label="Pareto front")
        _short_list(axes, materials, x, y, short)
        _known(axes)
        axes.set_xlabel(label("fracture toughness", r"MPa·m$^{1/2}$"))
        axes.set_ylabel(label("Vickers hardness", RELATIONS[HARDNESS].unit))
        axes.legend(loc="lower right")
    return figure


def _limits(x: Array, y: Array) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return limits that hold the known materials and all but the lowest hundredth of the crystals."""
    known = np.array(list(known_points().values()))
    found = []
    for values, marks in ((x, known[:, 0]), (y, known[:, 1])):
        low = min(float(np.quantile(values, 0.01)), float(marks.min())) / 1.3
        found.append((low, max(float(values.max()), float(marks.max())) * 1.35))
    return found[0], found[1]


def _cloud(figure: Figure, axes: Axes, x: Array, y: Array) -> None:
    if len(x) < MANY:
        axes.plot(x, y, linestyle="", marker="o", markersize=3.5, color=COLORS[0], alpha=0.55, markeredgewidth=0)
        return
    low, high = np.log10([axes.get_xlim(), axes.get_ylim()]).T
    extent = (low[0], high[0], low[1], high[1])
    inside = (x >= axes.get_xlim()[0]) & (y >= axes.get_ylim()[0])
    cells = axes.hexbin(
        x[inside], y[inside], xscale="log", yscale="log", gridsize=70, extent=extent, bins="log", mincnt=1, cmap="Blues"
    )
    figure.colorbar(cells, ax=axes, label="crystals per cell", pad=0.02, shrink=0.85)


def _guides(axes: Axes, name: str, wide: tuple[float, float], tall: tuple[float, float]) -> None:
    for number, (x, y) in enumerate(_guide_lines(name, wide, tall)):
        text = f"equal {words(name)}" if not number else None
        axes.plot(x, y, color=FAINT, linewidth=0.8, linestyle=DASHED, label=text, zorder=1.5)


def _guide_lines(name: str, wide: tuple[float, float], tall: tuple[float, float]) -> list[tuple[Array, Array]]:
    """Return lines of equal index through four points of the diagonal of the diagram."""
    rule = choose(INDICES, name, "material index")
    ends = np.geomspace(*wide, 2)
    lines = []
    for part in (0.35, 0.55, 0.75, 0.95):
        middle = {key: a ** (1 - part) * b**part for key, (a, b) in (("toughness", wide), ("hardness", tall))}
        lines.append((ends, rule.guide_line(float(rule.value(middle)), "toughness", "hardness", ends)))
    return lines


def _short_list(axes: Axes, materials: Materials, x: Array, y: Array, short: Sequence[int]) -> None:
    if not len(short):
        return
    rows = np.array([row for row in short if np.isfinite(x[row])], dtype=np.int64)
    bars = [_lengths(band, at, rows) for band, at in ((materials.toughness_band, x), (materials.hardness_band, y))]
    axes.errorbar(
        x[rows],
        y[rows],
        xerr=bars[0],
        yerr=bars[1],
        linestyle="",
        marker="s",
        markersize=4.5,
        color=COLORS[2],
        ecolor=COLORS[2],
        elinewidth=0.9,
        capsize=1.5,
        label="short list",
        zorder=4,
    )
    for row in rows:
        _name(axes, materials.name(int(row)), float(x[row]), float(y[row]), COLORS[2], below=True)


def _lengths(band: ArrayLike | None, at: Array, rows: Any) -> Array | None:
    """Return how far the ends of bands lie from the points (2, m), zero where unknown."""
    if band is None:
        return None
    low, high = np.asarray(band, dtype=np.float64)
    return np.nan_to_num(np.maximum([at[rows] - low[rows], high[rows] - at[rows]], 0.0))


def _known(axes: Axes) -> None:
    for name, (x, y) in known_points().items():
        axes.plot(x, y, marker="D", markersize=5.5, color="white", markeredgecolor=INK, linestyle="", zorder=5)
        _name(axes, name, x, y, INK)


def _name(axes: Axes, text: str, x: float, y: float, color: str, below: bool = False) -> None:
    axes.annotate(
        text,
        (x, y),
        xytext=(5, -9 if below else 5),
        textcoords="offset points",
        fontsize=8,
        color=color,
        annotation_clip=True,
        zorder=6,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.6, "pad": 0.5},
    )


def write_page(
    path: str | Path, materials: Materials, short: Sequence[int] = (), index: str = "wear_resistance", link: str = ""
) -> None:
    """Write the diagram as a page that needs nothing else: hover shows id, formula and values.

    Args:
        path: ``.html``; written all or nothing.
        materials: All crystals.
        short: Rows of the short list.
        index: As for `ashby`.
        link: Where a click on a crystal leads, with ``{id}`` for its id, such as ``crystals/{id}.html``; ``""`` for
            nowhere.

    Raises:
        DataError: Nothing to show, another ending, or the file can't be written.
        ConfigError: No such index.
        MissingPackageError: Plotly is not installed.
    """
    if Path(path).suffix.lower() not in (".html", ".htm"):
        raise DataError(f"{path}: a page ends in .html")
    page = _page(materials, short, index)
    script = _CLICK.replace("LINK", _script_text(link)) if link else None
    write_text(path, page.to_html(include_plotlyjs=True, post_script=script, config={"displaylogo": False}))


_CLICK = """
document.getElementById("{plot_id}").on("plotly_click", function (event) {
  var row = event.points[0].customdata;
  if (row) { window.open(LINK.split("{id}").join(encodeURIComponent(row[0])), "_blank", "noopener"); }
});
"""


def _script_text(text: str) -> str:
    """Return a text as JavaScript that may stand in a page."""
    import orjson

    return orjson.dumps(text).decode().replace("<", "\\u003c").replace(">", "\\u003e")


def _page(materials: Materials, short: Sequence[int], index: str) -> Any:
    try:
        import plotly.graph_objects as go
    except ImportError:
        raise MissingPackageError('pages need plotly: pip install "cgnn[plots]"') from None
    x, y = materials.points()
    shown = np.flatnonzero(np.isfinite(x))
    page = go.Figure()
    page.add_trace(
        _dots(go.Scattergl, materials, x, y, shown, "crystals", {"size": 4, "opacity": _opacity(len(shown))})
    )
    front = pareto_front([x, y])
    line = _dots(go.Scattergl, materials, x, y, front, "Pareto front", {"size": 6, "color": COLORS[1]})
    page.add_trace(line.update(mode="lines+markers", line={"color": COLORS[1], "width": 1}))
    if len(short):
        rows = np.array([row for row in short if np.isfinite(x[row])], dtype=np.int64)
        marker = {"size": 9, "symbol": "square", "color": COLORS[2]}
        bars = _dots(go.Scatter, materials, x, y, rows, "short list", marker)
        for axis, band, at in (("x", materials.toughness_band, x), ("y", materials.hardness_band, y)):
            if (ends := _lengths(band, at, rows)) is not None:
                bars.update({f"error_{axis}": {"array": ends[1], "arrayminus": ends[0], "thickness": 1}})
        page.add_trace(bars)
    marks = known_points()
    page.add_trace(
        go.Scatter(
            x=[mark[0] for mark in marks.values()],
            y=[mark[1] for mark in marks.values()],
            text=list(marks),
            mode="markers+text",
            textposition="top right",
            marker={"size": 10, "symbol": "diamond-open", "color": INK},
            name="known materials",
        )
    )
    wide, tall = _limits(x[shown], y[shown])
    for number, (along, line) in enumerate(_guide_lines(index, wide, tall)):
        page.add_trace(_page_guide(go, along, line, f"equal {words(index)}", first=not number))
    page.update_layout(template="simple_white", hovermode="closest", title=f"{len(shown):,} crystals")
    titles = (("fracture toughness", "MPa·m<sup>½</sup>", wide), ("Vickers hardness", RELATIONS[HARDNESS].unit, tall))
    for update, (quantity, unit, limits) in zip((page.update_xaxes, page.update_yaxes), titles, strict=True):
        update(type="log", range=list(np.log10(limits)), title=label(quantity, unit), showgrid=True)
    return page


def _opacity(points: int) -> float:
    """Return how solid single points are, so that a hundred thousand show where they are dense."""
    return float(np.clip(30 / np.sqrt(points), 0.08, 0.6))


def _dots(kind: Any, materials: Materials, x: Array, y: Array, rows: Any, name: str, marker: dict[str, Any]) -> Any:
    marker = {"color": COLORS[0], **marker}
    return kind(
        x=x[rows].astype(np.float32),  # half the size of the page; seven digits are what a network knows
        y=y[rows].astype(np.float32),
        customdata=[[str(materials.ids[row]), materials.name(row)] for row in rows],
        mode="markers",
        marker=marker,
        name=name,
        hovertemplate="%{customdata[1]} (%{customdata[0]})<br>hardness %{y:.3g} GPa<br>"
        "toughness %{x:.3g} MPa·m<sup>½</sup><extra></extra>",
    )


def _page_guide(go: Any, x: Array, y: Array, name: str, first: bool) -> Any:
    style = {"color": FAINT, "width": 1, "dash": "dash"}
    group = {"name": name, "legendgroup": "guides", "showlegend": first}
    return go.Scatter(x=x, y=y, mode="lines", line=style, hoverinfo="skip", **group)
