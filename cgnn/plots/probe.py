"""Pictures of a probe: how values answer to small changes of a crystal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from cgnn.plots.style import DASHED, FAINT, colors, drawing, label, words
from cgnn.predict.probing import PERTURBATIONS, Response
from cgnn.predict.probing.probe import AMPLITUDES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SMALLEST = 1e-13
"""Where the axis ends: smaller changes are rounding."""


def probe_responses(responses: Sequence[Response], target: str, *, title: str | None = None) -> Figure:
    """Draw the change of a value against the size of what changes it, a panel per change, a colour per subject.

    Lines are medians over the crystals, bands go from the smallest to the largest. What is smooth runs along the dashed
    lines, ten times less for a change ten times smaller; what jumps stays above them.

    Args:
        responses: What a probe found.
        target: Name of the target.
        title: By default the target's name.
    """
    mine = [each for each in responses if each.target == target]
    kinds = [kind for kind in PERTURBATIONS if any(each.perturbation == kind for each in mine)]
    names = list(dict.fromkeys(each.neighbors for each in mine))
    with drawing(4.0 * len(kinds) + 1.6, 3.6) as figure:
        panels = figure.subplots(1, len(kinds), squeeze=False, sharey=True)[0]
        figure.suptitle(title or words(target), x=0.01, ha="left", weight="bold")
        for panel, kind in zip(panels, kinds, strict=True):
            for name, color in zip(names, colors(), strict=False):
                group = [each for each in mine if (each.perturbation, each.neighbors) == (kind, name)]
                changes = np.array([each.changes for each in group]).clip(_SMALLEST)
                jumps = sum(each.is_jump for each in group)
                text = f"{words(name)} ({jumps} of {len(group)} jump)"
                panel.plot(AMPLITUDES, np.median(changes, axis=0), color=color, marker="o", markersize=4, label=text)
                low, high = changes.min(axis=0), changes.max(axis=0)
                panel.fill_between(AMPLITUDES, low, high, color=color, alpha=0.15, linewidth=0)
            panel.set(xscale="log", yscale="log", xlabel="amplitude (Å)", title=words(kind))
            panel.legend(loc="upper left", fontsize=8, frameon=True, facecolor="white", edgecolor="none")
        bottom, top = panels[0].get_ylim()
        for panel in panels:
            for exponent in range(-12, 8, 2):
                panel.plot(
                    AMPLITUDES, 10.0**exponent * np.array(AMPLITUDES), color=FAINT, linestyle=DASHED, linewidth=0.6
                )
            panel.set_ylim(bottom, 30 * top)
        panels[0].set_ylabel(label("change", mine[0].unit))
    return figure
