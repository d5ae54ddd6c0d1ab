"""The common look of all pictures, their scales, and writing them to a file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from cgnn.errors import DataError, MissingPackageError, unknown
from cgnn.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[np.float64]

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's colours, told apart by colour-blind people too."""
INK, FAINT = "#2b2b2b", "#9a9a9a"
DASHED = (0, (4, 3))
STYLE = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.7,
    "text.color": INK,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "legend.fontsize": 9,
}


@contextmanager
def drawing(width: float, height: float) -> Iterator[Figure]:
    """Give an empty figure (inches) and the style for what is drawn on it."""
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingPackageError('pictures need matplotlib: pip install "cgnn[plots]"') from None
    with rc_context(STYLE):  # type: ignore[arg-type]  # the stubs spell out every key
        yield Figure(figsize=(width, height), layout="constrained")


def save(figure: Figure, path: str | Path, dpi: int = 160) -> None:
    """Write a figure, all or nothing, in the format of the file's ending (png, pdf, svg, ...).

    Raises:
        DataError: The ending is no known format, or the file can't be written.
    """
    kind = Path(path).suffix.removeprefix(".").lower()
    formats = figure.canvas.get_supported_filetypes()
    if kind not in formats:
        raise DataError(f"{path}: {unknown(kind, sorted(formats), 'picture format')}")
    with replacing(path) as temporary:
        figure.savefig(temporary, format=kind, dpi=dpi, facecolor="white")


def single_axes(figure: Figure) -> Axes:
    """Return axes that fill the figure."""
    return figure.subplots()


def label(quantity: str, unit: str) -> str:
    """Return an axis label: the quantity and its unit in brackets."""
    return f"{quantity} ({unit})" if unit else quantity


def words(name: str) -> str:
    """Return a target's name for people."""
    return name.replace("_", " ")


def colors(first: int = 0) -> Iterator[str]:
    """Yield the colours from the given one on, without end."""
    return cycle((*COLORS[first:], *COLORS[:first]))


def plain_log(axes: Axes, *which: Literal["x", "y"]) -> None:
    """Make axes logarithmic, with plain numbers (100, not 10²) at ticks that suit their limits."""
    from matplotlib.ticker import FuncFormatter, Locator, LogLocator, MaxNLocator, NullFormatter

    for name in which:
        axis = axes.xaxis if name == "x" else axes.yaxis
        (axes.set_xscale if name == "x" else axes.set_yscale)("log")
        low, high = axes.get_xlim() if name == "x" else axes.get_ylim()
        decades = np.log10(high / low)
        steps = (1, 2, 5) if decades < 2.5 else (1, 3) if decades < 4.5 else (1,)
        locator: Locator = MaxNLocator(5) if decades < 0.5 else LogLocator(subs=steps)
        axis.set_major_locator(locator)
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
