"""Pictures of whether stated uncertainties are true: coverage, error against spread, retention."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from cgnn.plots.style import COLORS, DASHED, FAINT, INK, Array, drawing, label, plain_log, words
from cgnn.targets import Target
from cgnn.train.metrics import learned_unit
from cgnn.train.trust.calibration import LEVEL, Calibration
from cgnn.train.trust.reliability import (
    calibration_error,
    coverage,
    coverage_curve,
    miscalibration_area,
    retention,
    spread_bins,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def reliability(
    truth: ArrayLike,
    value: ArrayLike,
    sigma: ArrayLike,
    target: Target,
    calibration: Calibration,
    *,
    title: str | None = None,
) -> Figure:
    """Draw three panels: coverage of the intervals, error against stated spread, and the retention curve.

    All on the scale on which the target is learned.

    Args:
        truth: Known values (n,) in the target's unit; ``nan`` is left out.
        value: Predictions on the learned scale (n,).
        sigma: Their calibrated standard deviations there (n,).
        target: What was predicted.
        calibration: Of the intervals.
        title: By default the target's name.

    Raises:
        ValueError: No value is known.
    """
    labels, middle, spread = (np.asarray(given, dtype=np.float64) for given in (truth, value, sigma))
    known = np.isfinite(labels)
    if not known.any():
        raise ValueError(f"reliability of {target.name!r}: no known values")
    residual, spread = target.to_learned(labels[known]) - middle[known], spread[known]
    with drawing(11.6, 3.9) as figure:
        figure.suptitle(f"{title or words(target.name)} (n = {len(residual):,})", x=0.01, ha="left", weight="bold")
        panels = figure.subplots(1, 3)
        _coverage(panels[0], residual, spread, calibration)
        _error_against_spread(panels[1], residual, spread, learned_unit(target))
        _retention(panels[2], residual, spread, learned_unit(target))
    return figure


def _coverage(axes: Axes, residual: Array, spread: Array, calibration: Calibration) -> None:
    levels, found = coverage_curve(residual, spread, calibration)
    x, y = np.concatenate([[0], levels, [1]]), np.concatenate([[0], found, [1]])
    axes.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle=DASHED, label="exact")
    noise = 2 * np.sqrt(x * (1 - x) / len(residual))
    axes.fill_between(x, x - noise, x + noise, color=FAINT, alpha=0.25, linewidth=0, label="chance")
    axes.fill_between(x, x, y, color=COLORS[0], alpha=0.18, linewidth=0)
    axes.plot(levels, found, color=COLORS[0], marker="o", markersize=3.5, label="found")
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", title="Coverage")
    axes.set(xlabel="stated level of the interval", ylabel="share of the truth inside")
    inside = coverage(residual, calibration.half_width(LEVEL) * spread)
    text = f"{LEVEL:.0%} interval: {inside:.1%}\narea {miscalibration_area(levels, found):.3f}"
    axes.text(0.97, 0.04, text, transform=axes.transAxes, va="bottom", ha="right", fontsize=9)
    axes.legend(loc="upper left")


def _error_against_spread(axes: Axes, residual: Array, spread: Array, unit: str) -> None:
    bins = spread_bins(residual, spread)
    ends = np.array([min(bins.stated.min(), bins.found.min()), max(bins.stated.max(), bins.found.max())])
    low, high = (max(float(ends[0]), 1e-3 * float(ends[1])) / 1.3, float(ends[1]) * 1.3) if ends[1] > 0 else (0.1, 1.0)
    axes.plot([low, high], [low, high], color=INK, linewidth=1, linestyle=DASHED)
    # two standard errors of the root of a mean of squares of n normal errors; heavier tails scatter more
    noise = bins.found / np.sqrt(bins.counts / 2)
    axes.errorbar(bins.stated, bins.found, noise, color=COLORS[1], marker="o", markersize=5, linestyle="", capsize=2)
    axes.set(xlim=(low, high), ylim=(low, high), aspect="equal", title="Error against spread")
    axes.set(xlabel=label("stated standard deviation", unit), ylabel=label("root mean squared error", unit))
    plain_log(axes, "x", "y")
    text = f"{len(bins.counts)} bin{'s' if len(bins.counts) > 1 else ''}\nENCE {calibration_error(bins):.2f}"
    axes.text(0.03, 0.97, text, transform=axes.transAxes, va="top", fontsize=9)


def _retention(axes: Axes, residual: Array, spread: Array, unit: str) -> None:
    curve = retention(residual, spread)
    some = slice(max(1, len(residual) - 9))  # the error of fewer than ten crystals says little
    axes.axhline(float(curve.at_random[0]), color=INK, linewidth=1, linestyle=DASHED, label="any")
    axes.plot(curve.dropped[some], curve.by_spread[some], color=COLORS[2], label="least sure")
    axes.plot(curve.dropped[some], curve.by_error[some], color=FAINT, label="worst (not known)")
    axes.set(xlim=(0, 1), title="Retention", xlabel="share dropped", ylabel=label("MAE of the rest", unit))
    axes.set_ylim(0, 1.45 * max(float(curve.at_random[0]), 1e-12))
    axes.text(0.03, 0.04, f"gain {round(curve.gain, 2) + 0.0:.2f}", transform=axes.transAxes, va="bottom", fontsize=9)
    axes.legend(loc="upper right", title="dropped first", ncols=3, columnspacing=1.0, handlelength=1.4)
