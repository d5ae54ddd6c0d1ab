"""Pictures of how well a model does: parity, training history, learning curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cgnn.plots.style import (
    COLORS,
    DASHED,
    FAINT,
    INK,
    Array,
    colors,
    drawing,
    label,
    plain_log,
    single_axes,
    words,
)
from cgnn.targets import Target
from cgnn.train.metrics import Baseline, evaluate, learned_unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MANY = 2000
"""Points from which on a parity plot shows density instead of single points."""


def parity(
    truth: ArrayLike,
    prediction: ArrayLike,
    target: Target,
    *,
    parts: Sequence[str] | None = None,
    baseline: Baseline | None = None,
    title: str | None = None,
) -> Figure:
    """Draw predictions of a regression target against its known values, with n, MAE and R² in the corner.

    Both axes are logarithmic for a target learned as a logarithm. From `MANY` points on, one part is drawn as
    density and several parts as fainter points.

    Args:
        truth: Known values (n,) in the target's unit; ``nan`` is left out.
        prediction: Predicted values (n,) in the target's unit.
        target: What was predicted.
        parts: The part each point belongs to (``train``, ``val``, ``test``), one colour and score each.
        baseline: If given, the error of predicting the training mean stands beside the MAE.
        title: By default the target's name.
    """
    if target.task != "regression":
        raise ValueError(f"a parity plot shows numbers; {target.name!r} is a {target.task} target")
    x, y = (np.asarray(values, dtype=np.float64).ravel() for values in (truth, prediction))
    names = np.asarray(["all"] * len(x) if parts is None else list(parts))
    known = np.isfinite(x) & np.isfinite(y)
    x, y, names = x[known], y[known], names[known]
    several = len(set(names)) > 1
    with drawing(8.2 if several else 5.0, 4.8) as figure:
        axes = single_axes(figure)
        _square(axes, np.concatenate([x, y]), target.transform.startswith("log"))
        _parity_points(axes, x, y, names, f"{target.level}s per cell")
        axes.set(aspect="equal", title=title or words(target.name))
        axes.set_xlabel(label(f"known {words(target.name)}", target.unit))
        axes.set_ylabel(label(f"predicted {words(target.name)}", target.unit))
        texts = {part: _scores(target, x[names == part], y[names == part], baseline) for part in _unique(names)}
        if several:
            handles = axes.get_legend_handles_labels()[0]
            labels = [f"{part}: {text}" for part, text in texts.items()]
            axes.legend(handles, labels, loc="upper left", bbox_to_anchor=(1.0, 1.0), labelspacing=1.2)
        else:
            box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 2}
            axes.text(0.03, 0.97, texts.popitem()[1], transform=axes.transAxes, va="top", fontsize=9, bbox=box)
    return figure


def history(rows: Sequence[Mapping[str, Any]], targets: Sequence[Target] = ()) -> Figure:
    """Draw a training run: loss and score, validation error of each target, learning rate; all by epoch.

    Args:
        rows: The rows of ``history.jsonl``: ``epoch``, ``train_loss``, ``val_score``, ``learning_rate``,
            ``seconds`` and per target ``val_<name>_mae``, ``val_<name>_mae_<transform>`` or
            ``val_<name>_accuracy``.
        targets: The targets to show; for a transformed one its error on the learned scale.
    """
    epochs = _column(rows, "epoch")
    shown = [(target, key) for target in targets if (key := _history_key(target, rows))]
    heights = [2.4, *[1.8] * len(shown), 1.3]
    with drawing(6.4, 0.6 + sum(heights)) as figure:
        from matplotlib.ticker import MaxNLocator

        panels = figure.subplots(len(heights), sharex=True, gridspec_kw={"height_ratios": heights})
        _loss_curves(panels[0], rows, epochs)
        for (target, key), axes, color in zip(shown, panels[1:-1], colors(2), strict=False):
            axes.plot(epochs, _column(rows, key), color=color)
            score, unit = ("accuracy", "") if key.endswith("accuracy") else ("MAE", _history_unit(target, key))
            axes.set_ylabel(label(score, unit))
            axes.set_title(f"Validation: {words(target.name)}")
        panels[-1].plot(epochs, _column(rows, "learning_rate"), color=FAINT)
        panels[-1].set(ylabel="learning rate", xlabel="epoch")
        panels[-1].set_ylim(bottom=0)
        panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.align_ylabels(list(panels))
    return figure


def learning_curve(
    sizes: Sequence[int],
    errors: Mapping[str, Sequence[float]],
    *,
    baselines: Mapping[str, float] | None = None,
    spread: Mapping[str, Sequence[float]] | None = None,
    score: str = "MAE",
    unit: str = "",
    title: str = "Learning curve",
) -> Figure:
    """Draw the error of each target against the number of training crystals, both logarithmic.

    Args:
        sizes: Numbers of training crystals.
        errors: By target, the error at each size; all in one unit.
        baselines: By target, the error of predicting the training mean: a dashed line.
        spread: By target, the standard deviation of each error over repeats: a band.
        score: Name of the error.
        unit: Its unit, such as ``log10(GPa)``.
        title: The title.
    """
    with drawing(6.8, 4.0) as figure:
        axes = single_axes(figure)
        for (name, values), color in zip(errors.items(), colors(), strict=False):
            middle = np.asarray(values, dtype=np.float64)
            axes.plot(sizes, middle, color=color, marker="o", markersize=5, label=words(name))
            if spread and name in spread:
                half = np.asarray(spread[name], dtype=np.float64)
                axes.fill_between(sizes, middle - half, middle + half, color=color, alpha=0.18, linewidth=0)
            if baselines and name in baselines:
                mean = f"{words(name)}, training mean"
                axes.axhline(baselines[name], color=color, linestyle=DASHED, linewidth=1.2, label=mean)
        axes.set(xlabel="training crystals", ylabel=label(score, unit), title=title)
        plain_log(axes, "x", "y")
        axes.set_xticks(list(sizes), [f"{size:,}" for size in sizes])
        axes.set_xticks([], minor=True)
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def _column(rows: Sequence[Mapping[str, Any]], key: str) -> Array:
    """Return one column of the rows; ``nan`` where a row lacks it, which leaves a gap in a curve."""
    values = [row.get(key) for row in rows]
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _unique(names: NDArray[np.str_]) -> list[str]:
    return list(dict.fromkeys(names.tolist())) or ["all"]


def _square(axes: Axes, values: Array, log: bool) -> None:
    """Give both axes the same limits and scale, and draw the line of equality."""
    values = values[values > 0] if log else values
    ends = np.array([values.min(), values.max()]) if values.size else np.array([1.0, 10.0])
    ends = np.log10(ends) if log else ends
    margin = 0.05 * (ends[1] - ends[0]) or 0.5
    low, high = (float(end) for end in (ends[0] - margin, ends[1] + margin))
    low, high = (10**low, 10**high) if log else (low, high)
    axes.set(xlim=(low, high), ylim=(low, high))
    axes.plot([low, high], [low, high], color=INK, linewidth=1, linestyle=DASHED, zorder=3)
    if log:
        plain_log(axes, "x", "y")


def _parity_points(axes: Axes, x: Array, y: Array, names: NDArray[np.str_], count: str) -> None:
    parts = _unique(names)
    if len(parts) == 1 and len(x) >= MANY:
        _density(axes, x, y, count)
        return
    alpha = 0.75 if len(x) < MANY else 0.3
    for part, color in zip(parts, colors(), strict=False):
        mine = names == part
        points = axes.scatter(x[mine], y[mine], s=20, color=color, alpha=alpha, zorder=2, label=part)
        points.set(edgecolor="white", linewidth=0.4)


def _density(axes: Axes, x: Array, y: Array, count: str) -> None:
    """Draw the number of points by hexagonal cells, on the scale and ticks that the axes have."""
    log = axes.get_xscale() == "log"
    limits = axes.get_xlim()
    low, high = np.log10(limits) if log else limits
    inside = (x > 0) & (y > 0) if log else np.ones(len(x), dtype=bool)
    cells = axes.hexbin(
        x[inside],
        y[inside],
        gridsize=60,
        extent=(low, high, low, high),
        xscale="log" if log else "linear",
        yscale="log" if log else "linear",
        bins="log",
        mincnt=1,
        cmap="viridis",
        linewidths=0.1,
    )
    axes.set(xlim=limits, ylim=limits)
    if log:  # hexbin has set its own ticks
        plain_log(axes, "x", "y")
    bar = axes.figure.colorbar(cells, ax=axes, shrink=0.6, label=count)
    if cells.get_clim()[1] > cells.get_clim()[0]:
        plain_log(bar.ax, "y")


def _scores(target: Target, truth: Array, prediction: Array, baseline: Baseline | None) -> str:
    """Return n, MAE and R² in the target's unit and on the learned scale, a line each."""
    name = target.name
    scores = evaluate([target], {name: truth}, {name: prediction}, {name: baseline} if baseline else {})[name]
    lines = [f"n = {scores['n']:,}"]
    scales = {"": target.unit, f"_{target.transform}": learned_unit(target)}
    for ending, unit in scales.items():
        if f"mae{ending}" in scores:
            line = f"MAE {scores[f'mae{ending}']:.3g} {unit}".rstrip()
            lines.append(line + (f", R² {scores[f'r2{ending}']:.3f}" if f"r2{ending}" in scores else ""))
    beside = [f"{scores[key]:.3g}" for ending in scales if (key := f"baseline_mae{ending}") in scores]
    return "\n".join([*lines, *([f"training mean: MAE {', '.join(beside)}"] if beside else [])])


def _history_key(target: Target, rows: Sequence[Mapping[str, Any]]) -> str | None:
    """Return the key of a target's score that is worth showing, the learned scale first; None if absent."""
    stem = f"val_{target.name}"
    wanted = (f"{stem}_mae_{target.transform}", f"{stem}_mae", f"{stem}_accuracy")
    return next((key for key in wanted if any(key in row for row in rows)), None)


def _history_unit(target: Target, key: str) -> str:
    return learned_unit(target) if key.endswith(f"_mae_{target.transform}") else target.unit


def _loss_curves(axes: Axes, rows: Sequence[Mapping[str, Any]], epochs: Array) -> None:
    loss, score = _column(rows, "train_loss"), _column(rows, "val_score")
    axes.plot(epochs, loss, color=COLORS[0], label="training loss")
    axes.plot(epochs, score, color=COLORS[1], label="validation score")
    if np.isfinite(score).any():
        best = int(np.nanargmin(score))
        name = f"best: epoch {epochs[best]:.0f}"
        axes.scatter(epochs[best], score[best], color=COLORS[1], s=44, zorder=3, edgecolor="white", label=name)
    values = [value for value in (*loss, *score) if np.isfinite(value)]
    if values and 0 < 5 * min(values) < max(values):  # a narrow range reads better on a linear scale
        plain_log(axes, "y")
    seconds = np.nansum(_column(rows, "seconds"))
    axes.set(ylabel="scaled loss", title=f"Training: {len(rows)} epochs in {_duration(seconds)}")
    axes.legend(loc="upper right", ncols=3)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
