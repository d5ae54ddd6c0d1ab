"""Pictures of what the network sees: a crystal with its edges, an atom's neighbours, the Gaussian basis."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cgnn.plots.style import COLORS, DASHED, FAINT, INK, Array, drawing, single_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pymatgen.core import Structure

_PAPER = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
_FRONT = 1e6
"""Drawing order of what nothing may hide; atoms and lines are ordered by their height above the page (Å)."""


def structure_graph(
    structure: Structure,
    starts: ArrayLike | None = None,
    vectors: ArrayLike | None = None,
    *,
    title: str | None = None,
) -> Figure:
    """Draw the cell of an ordered crystal, its atoms coloured by element, and its edges.

    Atoms on faces of the cell are repeated on the opposite ones; atoms outside, met by an edge, are pale. The
    projection is parallel, so the scale bar holds for all lengths parallel to the page.

    Args:
        structure: The crystal.
        starts: Where each edge starts, Å, (E, 3).
        vectors: From there to its other end, Å, (E, 3).
        title: By default the formula and the lengths of the lattice vectors.
    """
    begin, along = (np.asarray([] if part is None else part, dtype=np.float64) for part in (starts, vectors))
    begin, along = begin.reshape(-1, 3), along.reshape(-1, 3)
    with drawing(5.6, 5.0) as figure:
        from pymatgen.util.string import unicodeify

        axes = single_axes(figure)
        scheme = element_colors()
        shades = np.array([scheme[site.specie.symbol] for site in structure])
        draw_cell(axes, structure.lattice.matrix)
        _draw_edges(axes, structure, begin, along, shades)
        draw_atoms(axes, structure, begin + along, shades)
        _element_legend(axes, structure, scheme)
        draw_scale_bar(axes)
        a, b, c = structure.lattice.abc
        formula = unicodeify(structure.reduced_formula)
        axes.set_title(title or f"{formula}: a = {a:.2f} Å, b = {b:.2f} Å, c = {c:.2f} Å")
        axes.set_aspect("equal")
        axes.set_axis_off()
    return figure


def neighbor_envelope(
    distances: ArrayLike,
    weights: ArrayLike,
    *,
    kth: float | None = None,
    reach: float | None = None,
    envelope: Callable[[Array], Array] | None = None,
    title: str = "Neighbours of one atom",
) -> Figure:
    """Draw an atom's neighbours by distance, and the weight that the envelope gives to their messages.

    Args:
        distances: Distances of the neighbours, Å.
        weights: Their weights, 0 to 1.
        kth: Radius that holds k neighbours, Å.
        reach: Distance at which the weight has faded to zero, Å.
        envelope: Weight as a function of distance (Å), drawn as a line.
        title: The title.
    """
    d, w = (np.asarray(values, dtype=np.float64).ravel() for values in (distances, weights))
    with drawing(6.0, 3.6) as figure:
        axes = single_axes(figure)
        end = 1.04 * max(d.max(), reach if reach is not None and np.isfinite(reach) else 0.0)
        if envelope is not None:
            grid = np.linspace(0, end, 400)
            inside = grid if reach is None else grid[grid <= reach]
            axes.plot(inside, envelope(inside), color=FAINT, linewidth=1.2, zorder=1)
        axes.vlines(d, 0, w, color=COLORS[0], linewidth=1.4, zorder=2)
        axes.scatter(d, w, color=COLORS[0], s=34, edgecolor="white", linewidth=0.8, zorder=3)
        above: dict[str, Any] = {"textcoords": "offset points", "bbox": _PAPER}
        for distance, weight, count in _shells(d, w):
            name = f"\N{MULTIPLICATION SIGN}{count}"
            axes.annotate(name, (distance, weight), (0, 7), ha="center", fontsize=9, **above)
        for place, name in ((kth, "holds k"), (reach, "reach")):
            if place is not None and np.isfinite(place):
                axes.axvline(place, color=COLORS[1], linestyle=DASHED, linewidth=1.1, zorder=0)
                axes.annotate(name, (place, 1.16), (-4, 0), color=COLORS[1], ha="right", **above)
        axes.set(xlim=(0, end), ylim=(0, 1.25), xlabel="distance (Å)", ylabel="weight", title=title)
    return figure


def gaussian_basis(centers: ArrayLike, width: float, *, distance: float | None = None) -> Figure:
    r"""Draw the Gaussians that a distance is expanded in.

    .. math:: e_k(d) = \exp(-(d - \mu_k)^2 / \sigma^2)

    Args:
        centers: The centres, Å.
        width: The width sigma, Å.
        distance: If given (Å), its features are marked on the curves.
    """
    middle = np.asarray(centers, dtype=np.float64).ravel()
    grid = np.linspace(middle.min() - width, middle.max() + width, 800)
    with drawing(6.4, 3.2) as figure:
        from matplotlib import colormaps

        axes = single_axes(figure)
        shades = colormaps["viridis"](np.linspace(0.05, 0.9, len(middle)))
        for center, shade in zip(middle, shades, strict=True):
            axes.plot(grid, np.exp(-(((grid - center) / width) ** 2)), color=shade, linewidth=1.2)
        if distance is not None:
            values = np.exp(-(((distance - middle) / width) ** 2))
            axes.axvline(distance, color=COLORS[1], linewidth=1.1, linestyle=DASHED)
            axes.scatter(np.full_like(values, distance), values, color=COLORS[1], s=18, zorder=3)
            axes.annotate(
                f"d = {distance:.3g} Å", (distance, 1.06), (5, 0), textcoords="offset points", color=COLORS[1]
            )
        axes.set(xlabel="distance (Å)", ylabel="feature", ylim=(0, 1.18), xlim=(grid[0], grid[-1]))
        axes.set_title(f"{len(middle)} Gaussians, width {width:.3g} Å")
    return figure


def _shells(distances: Array, weights: Array) -> Iterator[tuple[float, float, int]]:
    """Yield distance, weight and number of each set of neighbours at one distance (to 0.01 Å)."""
    rounded = np.round(distances, 2)
    for distance in np.unique(rounded):
        mine = rounded == distance
        yield float(distances[mine].mean()), float(weights[mine].max()), int(mine.sum())


def _project(points: Array) -> tuple[Array, Array]:
    """Return the places on the page (n, 2) of points (n, 3), and their height above it (n,), both Å."""
    azimuth, elevation = np.radians([-68.0, 16.0])
    toward = np.array([np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)])
    right = np.array([-np.sin(azimuth), np.cos(azimuth), 0.0])
    return points @ np.stack([right, np.cross(toward, right)], axis=1), points @ toward


def element_colors() -> dict[str, Array]:
    """Return Jmol's colour (red, green, blue; 0 to 1) of each element; grey for others."""
    from importlib.resources import files

    import yaml

    schemes = yaml.safe_load((files("pymatgen.vis") / "ElementColorSchemes.yaml").read_text())
    colors = {element: np.array(color) / 255 for element, color in schemes["Jmol"].items()}
    return defaultdict(lambda: np.full(3, 0.6), colors)


def draw_lines(axes: Axes, starts: Array, ends: Array, shades: Array, width: float) -> None:
    """Draw straight lines in short pieces, so that each piece is hidden by what lies in front of it."""
    from matplotlib.collections import LineCollection

    steps = np.linspace(0, 1, 25)[:, None, None]
    points = starts + steps * (ends - starts)
    places, heights = _project(points)
    pieces = np.stack([places[:-1], places[1:]], axis=2).reshape(-1, 2, 2)
    levels = np.round((heights[:-1] + heights[1:]) / 2, 1).ravel()
    shades = np.broadcast_to(shades, (len(steps) - 1, len(starts), 3)).reshape(-1, 3)
    for level in np.unique(levels):
        mine = levels == level
        axes.add_collection(
            LineCollection(pieces[mine], colors=shades[mine], linewidths=width, zorder=level, capstyle="round")
        )


def cell_edges(lattice: Array) -> tuple[Array, Array]:
    """Return both ends (12, 3), Å, of the edges of a cell with these lattice vectors (3, 3)."""
    corners = np.array([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)], dtype=np.float64)
    starts = np.array([corner for corner in corners for axis in range(3) if corner[axis] == 0])
    steps = np.array([np.eye(3)[axis] for corner in corners for axis in range(3) if corner[axis] == 0])
    return starts @ lattice, (starts + steps) @ lattice


def draw_cell(axes: Axes, lattice: Array) -> None:
    """Draw the edges of the cell and the names of its vectors, which are the rows of the lattice, Å (3, 3)."""
    draw_lines(axes, *cell_edges(lattice), np.full(3, 0.6), width=0.9)
    beyond = lattice * (1 + 1.1 / np.linalg.norm(lattice, axis=1, keepdims=True))
    for name, place in zip("abc", _project(beyond)[0], strict=True):
        axes.text(*_pair(place), name, style="italic", ha="center", va="center", zorder=_FRONT)


def sites_at(structure: Structure, points: Array) -> NDArray[np.int64]:
    """Return the number of the atom that is, or has an image, at each point."""
    inside = points @ structure.lattice.inv_matrix
    apart = inside[:, None, :] - structure.frac_coords[None]
    return np.linalg.norm((apart - np.round(apart)) @ structure.lattice.matrix, axis=2).argmin(axis=1)


def _draw_edges(axes: Axes, structure: Structure, starts: Array, vectors: Array, shades: Array) -> None:
    """Draw each edge in two halves coloured by its two atoms."""
    if not len(starts):
        return
    for atoms in (starts, starts + vectors):
        draw_lines(axes, atoms, starts + vectors / 2, 0.85 * shades[sites_at(structure, atoms)], width=2.2)


def draw_atoms(axes: Axes, structure: Structure, ends: Array, shades: Array, is_named: bool = False) -> None:
    """Draw atoms, their images on faces and the ends of edges as shaded balls.

    Args:
        axes: Where.
        structure: The crystal.
        ends: Ends of edges, Å (n, 3).
        shades: Colour of each atom of the cell (N, 3).
        is_named: Whether the symbol of its element stands on each ball.
    """
    from matplotlib.patheffects import withStroke
    from pymatgen.core import Element

    points, outside = visible_atoms(structure, ends)
    sites = sites_at(structure, points)
    places, heights = _project(points)
    for site, place, height, pale in zip(sites.tolist(), places, heights, outside, strict=True):
        symbol = structure[site].specie.symbol
        radius = 0.32 * float(Element(symbol).atomic_radius or 1.2)
        _ball(axes, place, radius, 0.35 * shades[site] + 0.65 if pale else shades[site], float(height))
        if is_named:
            front, color = float(height) + radius + 0.01, FAINT if pale else INK
            text = axes.text(*_pair(place), symbol, ha="center", va="center", fontsize=7, color=color, zorder=front)
            text.set_path_effects([withStroke(linewidth=2, foreground="white", alpha=0.7)])


def _element_legend(axes: Axes, structure: Structure, scheme: dict[str, Array]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], marker="o", linestyle="", color=_rgb(scheme[element]), markersize=9, label=element)
        for element in dict.fromkeys(site.specie.symbol for site in structure)
    ]
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def visible_atoms(structure: Structure, ends: Array) -> tuple[Array, NDArray[np.bool_]]:
    """Return the places of all atoms to draw, once each, and which of them lie outside the cell."""
    cells = np.array([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)])
    wrapped = structure.frac_coords - np.floor(structure.frac_coords + 1e-3)
    images = (wrapped[:, None, :] + cells).reshape(-1, 3)
    on_cell = images[(images < 1 + 1e-3).all(axis=1)]
    points = np.concatenate([on_cell @ structure.lattice.matrix, structure.cart_coords, ends])
    _, once = np.unique(np.round(points, 2) + 0.0, axis=0, return_index=True)
    inside = points[once] @ structure.lattice.inv_matrix
    return points[once], np.any((inside < -2e-3) | (inside > 1 + 2e-3), axis=1)


def _ball(axes: Axes, place: Array, radius: float, color: Array, height: float) -> None:
    """Draw discs that shrink and lighten towards the light, which comes from the upper left."""
    from matplotlib.patches import Circle

    for step in np.linspace(0, 1, 9):
        center = place + step * radius * np.array([-0.3, 0.3])
        shade = color + (1 - color) * 0.7 * step**2
        disc = Circle(_pair(center), radius * (1 - 0.9 * step), facecolor=_rgb(shade), zorder=height + radius)
        disc.set(edgecolor=_rgb(0.35 * color), linewidth=0.0 if step else 0.7)
        axes.add_patch(disc)


def _rgb(color: Array) -> tuple[float, float, float]:
    red, green, blue = color
    return float(red), float(green), float(blue)


def _pair(place: Array) -> tuple[float, float]:
    return float(place[0]), float(place[1])


def draw_scale_bar(axes: Axes) -> None:
    """Draw a bar of a round length below all that is drawn."""
    axes.autoscale_view()
    (low, high), bottom = axes.get_xlim(), axes.get_ylim()[0]
    length = max(step for step in (0.5, 1, 2, 5, 10, 20, 50) if step <= max(0.5, 0.3 * (high - low)))
    axes.plot([low, low + length], [bottom, bottom], color=INK, linewidth=2.5, solid_capstyle="butt")
    below = bottom - 0.02 * (high - low)
    axes.text(low + length / 2, below, f"{length:g} Å", ha="center", va="top", fontsize=9)
