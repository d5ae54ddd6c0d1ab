"""Pages on which a crystal can be turned with the mouse."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cgnn.errors import MissingPackageError
from cgnn.files import write_text
from cgnn.model.embed import covalent_radii
from cgnn.plots.crystal import cell_edges, element_colors, sites_at, visible_atoms
from cgnn.plots.style import FAINT, Array

if TYPE_CHECKING:
    from pymatgen.core import Structure

_SCRIPT = "plotly.min.js"
_BONDED = 1.15
"""Atoms this many times the sum of their covalent radii apart are drawn as bonded."""


def write_crystal_pages(folder: str | Path, crystals: Mapping[str, tuple[Structure, str]]) -> None:
    """Write a page for each crystal: its cell, to be turned, with what is known of it above; none needs the internet.

    Args:
        folder: Where to; plotly's script lies there once, for all of them.
        crystals: Name of the file without its ending -> crystal and title.

    Raises:
        DataError: A file can't be written.
        MissingPackageError: Plotly is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise MissingPackageError('pages need plotly: pip install "cgnn[plots]"') from None
    folder = Path(folder)
    if crystals:
        write_text(folder / _SCRIPT, get_plotlyjs())
    for name, (structure, title) in crystals.items():
        page = _figure(structure, title)
        write_text(folder / f"{name}.html", page.to_html(include_plotlyjs=_SCRIPT, config={"displaylogo": False}))


def _figure(structure: Structure, title: str) -> Any:
    import plotly.graph_objects as go

    scheme = element_colors()
    points, _ = visible_atoms(structure, np.zeros((0, 3)))
    elements = [structure[site].specie.symbol for site in sites_at(structure, points).tolist()]
    figure = go.Figure()
    starts, ends = cell_edges(structure.lattice.matrix)
    figure.add_trace(_lines(go, starts, ends, FAINT, 2))
    figure.add_trace(_lines(go, *_bonds(points, elements), "#bbbbbb", 5))
    for element in dict.fromkeys(site.specie.symbol for site in structure):
        mine = points[[one == element for one in elements]]
        figure.add_trace(_atoms(go, mine, element, scheme[element]))
    bare = {"visible": False}
    scene = {"aspectmode": "data", "xaxis": bare, "yaxis": bare, "zaxis": bare, "camera": {"projection": _PARALLEL}}
    figure.update_layout(title=escape(title).replace("\n", "<br>"), scene=scene, margin={"t": 110})
    return figure


_PARALLEL = {"type": "orthographic"}


def _atoms(go: Any, points: Array, element: str, color: Array) -> Any:
    from pymatgen.core import Element

    x, y, z = points.T
    shade = "rgb({:.0f},{:.0f},{:.0f})".format(*(255 * color))
    marker = {
        "size": 14 * float(Element(element).atomic_radius or 1.2) ** 0.5,
        "color": shade,
        "line": {"color": "#444444", "width": 1},
    }
    hover = f"{element}<br>%{{x:.3f}}, %{{y:.3f}}, %{{z:.3f}} Å<extra></extra>"
    return go.Scatter3d(x=x, y=y, z=z, mode="markers", marker=marker, name=element, hovertemplate=hover)


def _lines(go: Any, starts: Array, ends: Array, color: str, width: float) -> Any:
    gaps = np.full_like(starts, np.nan)  # between two lines
    x, y, z = np.stack([starts, ends, gaps], axis=1).reshape(-1, 3).T
    line = {"color": color, "width": width}
    return go.Scatter3d(x=x, y=y, z=z, mode="lines", line=line, hoverinfo="skip", showlegend=False)


def _bonds(points: Array, elements: list[str]) -> tuple[Array, Array]:
    """Return both ends of bonds between points, by covalent radii."""
    from pymatgen.core import Element

    radii = covalent_radii()[[Element(element).Z for element in elements]]
    apart = np.linalg.norm(points[:, None] - points[None], axis=2)
    first, second = np.nonzero(np.triu(apart < _BONDED * (radii[:, None] + radii[None]), k=1))
    return points[first], points[second]
