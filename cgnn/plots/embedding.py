"""Pictures of embeddings: crystals as points of a plane, coloured by a property."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from cgnn.plots.style import colors, drawing, label, single_axes, words

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from cgnn.predict.embedding import Map


def embedding_map(
    place: Map, values: ArrayLike, quantity: str, unit: str = "", *, is_log: bool = False, title: str = "Embedding"
) -> Figure:
    """Draw crystals at their places, coloured by a number (unknown ones grey) or by a class.

    Args:
        place: The map.
        values: A property of the crystals (n,): numbers, or names of classes.
        quantity: Its name.
        unit: Its unit.
        is_log: Whether the scale of colours is logarithmic.
        title: The title.
    """
    known = np.asarray(values)
    with drawing(6.4, 5.0) as figure:
        axes = single_axes(figure)
        x, y = place.points.T
        size = float(np.clip(4000 / len(x), 6, 40))
        if known.dtype.kind in "OUS":
            for name, color in zip(sorted(set(known.tolist())), colors(), strict=False):
                mine = known == name
                axes.scatter(x[mine], y[mine], s=size, color=color, linewidth=0, label=str(name))
            axes.legend(title=words(quantity), loc="upper left", bbox_to_anchor=(1.0, 1.0))
        else:
            numbers = known.astype(np.float64)
            shown = np.isfinite(numbers) & ((numbers > 0) | (not is_log))
            axes.scatter(x[~shown], y[~shown], s=size, color="#c8c8c8", linewidth=0)
            points = axes.scatter(
                x[shown],
                y[shown],
                c=numbers[shown],
                s=size,
                cmap="viridis",
                norm="log" if is_log else None,
                linewidth=0,
            )
            figure.colorbar(points, ax=axes, label=label(words(quantity), unit), shrink=0.8)
        axes.set(xlabel=place.axes[0], ylabel=place.axes[1], title=title)
        axes.grid(False)
    return figure
