"""Pictures of a study of depth: errors against depth; measures, gradients and updates against the layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cgnn.plots.style import DASHED, colors, drawing, plain_log, words

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, Any]
MEASURE_TITLES = {
    "dirichlet": "root of the Dirichlet energy",
    "relative_dirichlet": "the same over the size of the features",
    "mad": "mean cosine distance of two atoms",
    "effective_rank": "effective rank",
}
STEP_TITLES = {
    "gradient_start": "gradient in the first step",
    "gradient": "gradient, mean of the epochs",
    "update": "update over weight, mean of them",
}
_SMALLEST = 1e-12
"""Where a logarithmic axis ends: smaller values are rounding."""


def error_against_depth(rows: Sequence[Row], target: str, unit: str = "", *, title: str | None = None) -> Figure:
    """Draw the error of test and training part against the number of layers, a colour per remedy.

    Bars are the standard deviation over the seeds; the dashed lines are the training part.

    Args:
        rows: The table of a study.
        target: Name of the target.
        unit: Of its error.
        title: By default the target's name.
    """
    depths = sorted({row["depth"] for row in rows})
    with drawing(7.6, 4.2) as figure:
        axes = figure.subplots()
        for (remedy, mine), color in zip(_by(rows, "remedy").items(), colors(), strict=False):
            for part, line in (("test", "-"), ("train", DASHED)):
                groups = _by([row for row in mine if row["layer"] == 0], "depth")
                values = [[row[f"{part}_{target}"] for row in group] for group in groups.values()]
                spread = [np.std(each, ddof=1) if len(each) > 1 else 0.0 for each in values]
                name = words(remedy) if part == "test" else None
                style: dict[str, Any] = {"linestyle": line, "color": color, "marker": "o", "markersize": 4}
                axes.errorbar(list(groups), [np.mean(v) for v in values], spread, label=name, capsize=3, **style)
        axes.set_xscale("log", base=2)
        axes.set_xticks(depths, [str(depth) for depth in depths])
        axes.xaxis.minorticks_off()
        plain_log(axes, "y")
        axes.set(xlabel="layers", ylabel=f"mean absolute error ({unit})" if unit else "error")
        axes.set_title(title or words(target))
        axes.legend(title="solid: test, dashed: training", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def measures_against_layer(rows: Sequence[Row], depth: int) -> Figure:
    """Draw the four measures of smoothness against the layer of networks of one depth, a colour per remedy.

    Args:
        rows: The table of a study.
        depth: Of the networks.
    """
    return _against_layer(rows, depth, MEASURE_TITLES, 2, 2, lambda name: name != "effective_rank")


def gradients_against_layer(rows: Sequence[Row], depth: int) -> Figure:
    """Draw norms of gradients and sizes of updates against the layer of networks of one depth.

    Args:
        rows: The table of a study.
        depth: Of the networks.
    """
    return _against_layer(rows, depth, STEP_TITLES, 1, 3, lambda name: True)


def _against_layer(
    rows: Sequence[Row], depth: int, titles: Mapping[str, str], high: int, wide: int, is_log: Callable[[str], bool]
) -> Figure:
    chosen = [row for row in rows if row["depth"] == depth]
    with drawing(4.2 * wide + 1.6, 3.2 * high + 0.4) as figure:
        panels = figure.subplots(high, wide, squeeze=False).ravel()
        figure.suptitle(f"{depth} layers" if depth > 1 else "1 layer", x=0.01, ha="left", weight="bold")
        for panel, (name, title) in zip(panels, titles.items(), strict=True):
            for (remedy, mine), color in zip(_by(chosen, "remedy").items(), colors(), strict=False):
                _line(panel, mine, name, remedy, color, is_log(name))
            panel.set(xlabel="layer", title=title)
            panel.xaxis.get_major_locator().set_params(integer=True)
            if is_log(name) and panel.has_data():
                plain_log(panel, "y")
        panels[wide - 1].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def _line(axes: Axes, rows: Sequence[Row], name: str, remedy: str, color: str, is_log: bool) -> None:
    """Draw the mean over the seeds, and from the smallest to the largest of them."""
    groups = {layer: np.array([row[name] for row in mine]) for layer, mine in _by(rows, "layer").items()}
    groups = {layer: values for layer, values in groups.items() if np.isfinite(values).all()}
    if is_log:
        groups = {layer: values.clip(_SMALLEST) for layer, values in groups.items()}
    layers, values = list(groups), list(groups.values())
    axes.plot(layers, [each.mean() for each in values], color=color, marker="o", markersize=3, label=words(remedy))
    axes.fill_between(
        layers, [v.min() for v in values], [v.max() for v in values], color=color, alpha=0.18, linewidth=0
    )


def _by(rows: Sequence[Row], column: str) -> dict[Any, list[Row]]:
    """Return the rows by the value of a column; numbers in their order."""
    found: dict[Any, list[Row]] = {}
    for row in rows:
        found.setdefault(row[column], []).append(row)
    return found if column == "remedy" else dict(sorted(found.items()))
