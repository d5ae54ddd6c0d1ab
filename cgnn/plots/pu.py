"""Pictures of scores where only positives are known: what is found against what is flagged, bags, elements, later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from cgnn.plots.style import COLORS, DASHED, FAINT, INK, Array, colors, drawing, plain_log, single_axes
from cgnn.train.pu.evaluation import Figures, binomial_error, later, recall_at, roc, roc_auc
from cgnn.train.pu.prior import given

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Sides = tuple[ArrayLike, ArrayLike]
"""Scores of held-out positives and out-of-bag scores of unlabelled crystals."""
KNOWN, OTHERS = "held-out positives", "unlabelled, out of bag"


def score_histogram(
    heldout: ArrayLike, unlabelled: ArrayLike, threshold: float = 0.5, *, title: str = "Scores"
) -> Figure:
    """Draw how the scores of held-out positives and of unlabelled crystals are spread, each with a total of one.

    Args:
        heldout: Scores of held-out positives (P,); ``nan`` is left out.
        unlabelled: Out-of-bag scores (U,).
        threshold: Where a line parts flagged and not flagged; the legend has the share of each above it.
        title: The title.
    """
    bins = np.linspace(0, 1, 41).tolist()
    with drawing(6.4, 3.8) as figure:
        axes = single_axes(figure)
        for name, scores, color in zip((KNOWN, OTHERS), given(heldout, unlabelled), COLORS, strict=False):
            label = f"{name} ({len(scores):,}): {np.mean(scores >= threshold):.1%} flagged"
            weights = np.full(len(scores), 1 / len(scores))
            axes.hist(scores, bins, weights=weights, color=color, alpha=0.45, label=label, histtype="stepfilled")
            axes.hist(scores, bins, weights=weights, color=color, histtype="step", linewidth=1.2)
        axes.axvline(threshold, color=INK, linewidth=1, linestyle=DASHED)
        axes.set(xlim=(0, 1), xlabel="score", ylabel=f"share of crystals per {bins[1]:g}", title=title)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, -0.42))
    return figure


def recall_against_share(
    curves: Mapping[str, Sides],
    *,
    marks: Mapping[str, tuple[float, float]] | None = None,
    title: str = "Recall of held-out positives",
) -> Figure:
    """Draw recall against the share of unlabelled crystals flagged, one curve for each classifier.

    The band is two binomial standard errors of the recall. The dashed line is what a guess and a constant reach.

    Args:
        curves: Name -> scores of both sides; baselines last.
        marks: Name -> (share flagged, recall) of single points, such as published ones.
        title: The title.
    """
    shares = np.linspace(0, 1, 401)
    with drawing(8.4, 4.4) as figure:
        figure.set_layout_engine("compressed")  # a square has nothing to fill the width with
        axes = single_axes(figure)
        axes.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle=DASHED, label="a guess, or a constant")
        for (name, sides), color in zip(curves.items(), colors(), strict=False):
            known, others = given(*sides)
            recall = recall_at(known, others, shares)
            noise = 2 * np.array([binomial_error(share, len(known)) for share in recall])
            axes.fill_between(shares, recall - noise, recall + noise, color=color, alpha=0.18, linewidth=0)
            axes.plot(shares, recall, color=color, label=name)
        for (name, (share, recall_there)), marker in zip((marks or {}).items(), "sD^v", strict=False):
            text = f"{name}: {recall_there:.1%} at {share:.1%}"
            axes.plot(share, recall_there, marker, color=INK, markersize=6, markeredgecolor="white", label=text)
        axes.set(xlim=(0, 1), ylim=(0, 1.01), aspect="equal", title=title)
        axes.set(xlabel="share of unlabelled crystals flagged", ylabel="share of held-out positives flagged")
        axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1.0), labelspacing=0.8)
    return figure


def progress(
    bags: Sequence[int],
    values: ArrayLike,
    errors: ArrayLike,
    *,
    quantity: str = "recall where 20.8 % are flagged",
    baselines: Mapping[str, float] | None = None,
    title: str = "Score after each bag",
) -> Figure:
    """Draw a figure against the number of bags, with a band of two standard errors.

    Args:
        bags: Numbers of bags.
        values: The figure after each (n,).
        errors: Its standard error (n,); ``nan`` where there is none yet.
        quantity: What the figure is.
        baselines: Name -> its value for a baseline: a dashed line.
        title: The title.
    """
    middle, half = (np.asarray(numbers, dtype=np.float64) for numbers in (values, errors))
    with drawing(6.4, 3.8) as figure:
        from matplotlib.ticker import MaxNLocator

        axes = single_axes(figure)
        axes.fill_between(bags, middle - 2 * half, middle + 2 * half, color=COLORS[0], alpha=0.18, linewidth=0)
        axes.plot(bags, middle, color=COLORS[0], marker="o", markersize=4)
        for (name, value), color in zip((baselines or {}).items(), colors(1), strict=False):
            axes.axhline(value, color=color, linestyle=DASHED, linewidth=1.2, label=name)
        axes.set(xlabel="bags", ylabel=quantity, title=title)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if baselines:
            axes.legend(loc="best")
    return figure


def roc_curve(curves: Mapping[str, Sides], *, alpha: float | None = None) -> Figure:
    """Draw ROC curves against the unlabelled crystals, with their areas, and say what that leaves open.

    Args:
        curves: Name -> scores of both sides.
        alpha: Share of positives among the unlabelled; with it, shaded is what no classifier can reach, as it would
            have to tell positives from positives.
    """
    with drawing(8.4, 4.4) as figure:
        figure.set_layout_engine("compressed")
        axes = single_axes(figure)
        axes.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle=DASHED, label="a guess")
        for (name, sides), color in zip(curves.items(), colors(), strict=False):
            area, error = roc_auc(*sides)
            axes.plot(*roc(*sides), color=color, label=f"{name}: area {area:.3f} ± {error:.3f}")
        if alpha:
            best = f"out of reach with {alpha:.0%} positives:\narea {1 - alpha / 2:.3f} at most"
            axes.fill_between([0, alpha], [0, 1], [1, 1], color=FAINT, alpha=0.25, linewidth=0, label=best)
        axes.set(xlim=(0, 1), ylim=(0, 1.01), aspect="equal", title="ROC against unlabelled crystals")
        axes.set(xlabel="share of unlabelled crystals flagged\n(some of them are positive)")
        axes.set_ylabel("share of held-out positives flagged")
        axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1.0), labelspacing=0.8)
    return figure


def enrichment(curves: Mapping[str, ArrayLike], is_later: ArrayLike, *, title: str = "Found later") -> Figure:
    """Draw how many times more often later positives are among the best-scored crystals than among all.

    Args:
        curves: Name -> scores (n,) of the crystals that were unlabelled at training.
        is_later: Whether each has become positive since (n,).
        title: The title.
    """
    with drawing(6.8, 4.0) as figure:
        axes = single_axes(figure)
        for (name, scores), color in zip(curves.items(), colors(), strict=False):
            known = int(np.isfinite(np.asarray(scores, dtype=np.float64)).sum())
            numbers = np.unique(np.geomspace(min(10, known), known, 40).round().astype(int))
            rows = later(scores, is_later, [int(number) for number in numbers])
            k, middle, error = (_column(rows, key) for key in ("k", "enrichment", "enrichment_se"))
            axes.fill_between(k, middle - 2 * error, middle + 2 * error, color=color, alpha=0.18, linewidth=0)
            axes.plot(k, middle, color=color, label=name)
        axes.axhline(1, color=INK, linewidth=1, linestyle=DASHED, label="a guess")
        axes.set(xlabel="best-scored crystals", ylabel="enrichment of later positives", title=title)
        axes.set_ylim(bottom=0)
        plain_log(axes, "x")
        axes.legend(loc="best")
    return figure


def element_recall(
    rows: Mapping[str, Figures], *, least: int = 10, most: int = 60, title: str = "Recall by element"
) -> Figure:
    """Draw recall of the held-out positives that contain an element, beside the share flagged of unlabelled ones.

    Args:
        rows: Element -> its figures (`cgnn.train.pu.evaluation.by_element`).
        least: Held-out positives below which an element is left out.
        most: Elements shown: where there are more, those with the lowest recall.
        title: The title.

    Raises:
        ValueError: No element has that many held-out positives.
    """
    shown = sorted((name for name in rows if rows[name]["heldout"] >= least), key=lambda name: rows[name]["recall"])
    if not shown:
        raise ValueError(f"recall by element: none has {least} held-out positives")
    with drawing(max(4.0, 1.4 + 0.19 * min(len(shown), most)), 3.8) as figure:
        axes = single_axes(figure)
        _element_bars(axes, [rows[name] for name in shown[:most]])
        axes.set_xticks(range(len(shown[:most])), shown[:most], fontsize=8)
        left_out = len(rows) - len(shown[:most])
        note = f", {left_out} more not shown" if left_out else ""
        axes.set(ylim=(0, 1.02), title=title, xlabel=f"element (at least {least} held-out positives{note})")
        axes.set_ylabel("share flagged")
        axes.grid(axis="x", visible=False)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=2)
    return figure


def _element_bars(axes: Axes, rows: Sequence[Figures]) -> None:
    recall, error, flagged = (_column(rows, key) for key in ("recall", "recall_se", "flagged"))
    places = np.arange(len(rows))
    axes.bar(places, recall, width=0.8, color=COLORS[0], alpha=0.55, label=KNOWN)
    axes.errorbar(places, recall, 2 * error, color=INK, linestyle="", linewidth=0.9)
    axes.plot(places, flagged, "o", color=COLORS[1], markersize=4, label="unlabelled")
    axes.set_xlim(-0.7, len(rows) - 0.3)


def _column(rows: Sequence[Figures], key: str) -> Array:
    return np.array([row.get(key, np.nan) for row in rows], dtype=np.float64)
