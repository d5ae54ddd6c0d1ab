"""The Ashby diagram as a page that answers to the mouse and needs no internet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cgnn.errors import DataError, MissingPackageError
from cgnn.files import write_text
from cgnn.physics import RELATIONS
from cgnn.physics.ashby import pareto_front
from cgnn.plots.ashby import Materials, guide_lines, whole_limits
from cgnn.plots.style import COLORS, FAINT, INK, Array, label, words

PAGE_POINTS = 100_000
"""More crystals are thinned out evenly, but for the front and the short list: a browser shows no more with ease."""

_CLICK = """
document.getElementById("{plot_id}").on("plotly_click", function (event) {
  var row = event.points[0].customdata;
  var place = row && (row[2] || LINK.split("{id}").join(encodeURIComponent(row[0])));
  if (place) { window.open(place, "_blank", "noopener"); }
});
"""


def write_page(
    path: str | Path,
    materials: Materials,
    short: Sequence[int] = (),
    index: str = "wear_resistance",
    link: str = "",
    links: Mapping[int, str] | None = None,
) -> None:
    """Write the diagram as a page that needs nothing else: hover shows id, formula and values.

    Args:
        path: ``.html``; written all or nothing.
        materials: All crystals; of more than `PAGE_POINTS` some.
        short: Rows of the short list.
        index: As for `cgnn.plots.ashby.ashby`.
        link: Where a click on a crystal leads, with ``{id}`` for its id, such as ``crystals/{id}.html``; ``""`` for
            nowhere.
        links: Row -> where a click on this crystal leads instead.

    Raises:
        DataError: Nothing to show, another ending, or the file can't be written.
        ConfigError: No such index.
        MissingPackageError: Plotly is not installed.
    """
    if Path(path).suffix.lower() not in (".html", ".htm"):
        raise DataError(f"{path}: a page ends in .html")
    page = _page(materials, short, index, links or {})
    script = _CLICK.replace("LINK", _script_text(link)) if link or links else None
    write_text(path, page.to_html(include_plotlyjs=True, post_script=script, config={"displaylogo": False}))


def _script_text(text: str) -> str:
    """Return a text as JavaScript that may stand in a page."""
    import orjson

    return orjson.dumps(text).decode().replace("<", "\\u003c").replace(">", "\\u003e")


def _page(materials: Materials, short: Sequence[int], index: str, links: Mapping[int, str]) -> Any:
    try:
        import plotly.graph_objects as go
    except ImportError:
        raise MissingPackageError('pages need plotly: pip install "cgnn[plots]"') from None
    x, y = materials.points()
    front = pareto_front([x, y])
    chosen = np.array([row for row in short if np.isfinite(x[row])], dtype=np.int64)
    known = np.flatnonzero(np.isfinite(x))
    shown = _thinned(known, np.concatenate([front, chosen]))
    dots = _Dots(materials, links)
    page = go.Figure()
    opacity = float(np.clip(30 / np.sqrt(len(shown)), 0.08, 0.6))  # single points, and where a hundred thousand lie
    page.add_trace(dots.trace(go.Scattergl, shown, "crystals", {"size": 4, "opacity": opacity}))
    line = dots.trace(go.Scattergl, front, "Pareto front", {"size": 6, "color": COLORS[1]})
    page.add_trace(line.update(mode="lines+markers", line={"color": COLORS[1], "width": 1}))
    if len(chosen):
        page.add_trace(_short_list(go, dots, chosen))
    page.add_trace(_known(go, materials))
    limits = whole_limits(materials)
    for number, (along, line) in enumerate(guide_lines(index, *limits)):
        page.add_trace(_guide(go, along, line, f"equal {words(index)}", first=not number))
    count = f"{len(known):,}" if len(shown) == len(known) else f"{len(shown):,} of {len(known):,}"
    page.update_layout(template="simple_white", hovermode="closest", title=f"{count} crystals")
    unit = RELATIONS[materials.relations[1]].unit
    titles = (("fracture toughness", "MPa·m<sup>½</sup>", limits[0]), ("Vickers hardness", unit, limits[1]))
    for update, (quantity, name, ends) in zip((page.update_xaxes, page.update_yaxes), titles, strict=True):
        update(type="log", range=list(np.log10(ends)), title=label(quantity, name), showgrid=True)
    return page


def _thinned(rows: Any, always: Any) -> Any:
    """Return so many rows as a page shows, with some that are always there."""
    if len(rows) <= PAGE_POINTS:
        return rows
    return np.union1d(rows[np.linspace(0, len(rows) - 1, PAGE_POINTS).astype(np.int64)], always)


class _Dots:
    """Makes points that say what they are.

    Args:
        materials: The crystals.
        links: Row -> where a click leads.
    """

    def __init__(self, materials: Materials, links: Mapping[int, str]) -> None:
        self.materials = materials
        self.x, self.y = materials.points()
        self._links = links
        self._details = [np.asarray(values, dtype=np.float64) for values in materials.details.values()]
        said = [f"{name} %{{customdata[{place}]:.3g}}" for place, name in enumerate(materials.details, 3)]
        self._hover = "<br>".join(
            [
                "%{customdata[1]} (%{customdata[0]})",
                "hardness %{y:.3g} GPa",
                "toughness %{x:.3g} MPa·m<sup>½</sup>",
                *said,
            ]
        )

    def trace(self, kind: Any, rows: Any, name: str, marker: dict[str, Any]) -> Any:
        """Return points of some crystals as a trace of plotly."""
        return kind(
            x=self.x[rows].astype(np.float32),  # half the size of the page; seven digits are what a network knows
            y=self.y[rows].astype(np.float32),
            customdata=[self._said(int(row)) for row in rows],
            mode="markers",
            marker={"color": COLORS[0], **marker},
            name=name,
            hovertemplate=f"{self._hover}<extra></extra>",
        )

    def _said(self, row: int) -> list[Any]:
        details = [float(f"{values[row]:.4g}") if np.isfinite(values[row]) else None for values in self._details]
        return [str(self.materials.ids[row]), self.materials.name(row), self._links.get(row, ""), *details]


def _short_list(go: Any, dots: _Dots, rows: Any) -> Any:
    marker = {"size": 9, "symbol": "square", "color": COLORS[2]}
    trace = dots.trace(go.Scatter, rows, "short list", marker)
    for axis, ends in zip("xy", dots.materials.bars(rows), strict=True):
        if ends is not None:
            trace.update({f"error_{axis}": {"array": ends[1], "arrayminus": ends[0], "thickness": 1}})
    return trace


def _known(go: Any, materials: Materials) -> Any:
    marks = materials.known()
    return go.Scatter(
        x=[mark[0] for mark in marks.values()],
        y=[mark[1] for mark in marks.values()],
        text=list(marks),
        mode="markers+text",
        textposition="top left",
        marker={"size": 10, "symbol": "diamond-open", "color": INK},
        name="known materials",
    )


def _guide(go: Any, x: Array, y: Array, name: str, first: bool) -> Any:
    style = {"color": FAINT, "width": 1, "dash": "dash"}
    group = {"name": name, "legendgroup": "guides", "showlegend": first}
    return go.Scatter(x=x, y=y, mode="lines", line=style, hoverinfo="skip", **group)
