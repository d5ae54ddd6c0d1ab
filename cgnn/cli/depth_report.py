"""What a person reads of a study of depth: verdicts, a table, pictures, one page with all."""

from __future__ import annotations

import base64
import warnings
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np

from cgnn.errors import MissingPackageError
from cgnn.files import write_json, write_text
from cgnn.train.depth import Cure, Study, Verdict, cures, verdicts
from cgnn.train.metrics import learned_unit

REPORT = "report.html"
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;color:#2b2b2b;max-width:70em;margin:2em auto;padding:0 1em}"
    "table{border-collapse:collapse}td,th{padding:.2em .8em;text-align:right;border-bottom:1px solid #ddd}"
    "td:first-child,th:first-child{text-align:left}img{max-width:100%}"
)


def write_depth_report(study: Study) -> list[str]:
    """Write ``report.html``, ``verdict.json`` and the pictures of a study; return the verdicts in words.

    Without matplotlib the pictures are left out.
    """
    names = [target.name for target in study.config.targets]
    found = verdicts(study.rows, names)
    said: list[Verdict | Cure] = [*found, *cures(study.rows, names)]
    lines = [each.text() for each in said]
    lines += [f"{name} is not in the table: {reason.partition(';')[0]}" for name, reason in study.failed.items()]
    write_json(study.folder / "verdict.json", [vars(each) | {"text": each.text()} for each in said])
    try:
        pictures = _pictures(study)
    except MissingPackageError as error:
        warnings.warn(f"no plots: {error}", stacklevel=2)
        pictures = []
    write_text(study.folder / REPORT, _page(study, found, lines, pictures))
    return lines


def _pictures(study: Study) -> list[Path]:
    from cgnn.plots import depth as plots
    from cgnn.plots import save

    depths = sorted({row["depth"] for row in study.rows})
    figures = {
        f"errors-{target.name}.png": plots.error_against_depth(
            study.rows, target.name, learned_unit(target) if target.task == "regression" else ""
        )
        for target in study.config.targets
    }
    for depth in depths:
        figures[f"measures-{depth}.png"] = plots.measures_against_layer(study.rows, depth)
        figures[f"gradients-{depth}.png"] = plots.gradients_against_layer(study.rows, depth)
    for name, figure in figures.items():
        save(figure, study.folder / name, dpi=110)
    shown = [name for name in figures if name.startswith("errors")]
    return [study.folder / name for name in (*shown, f"measures-{depths[-1]}.png", f"gradients-{depths[-1]}.png")]


def _page(study: Study, found: Sequence[Verdict], lines: Sequence[str], pictures: Sequence[Path]) -> str:
    images = "".join(
        f'<p><img alt="{escape(path.stem)}" src="data:image/png;base64,'
        f'{base64.b64encode(path.read_bytes()).decode()}"></p>'
        for path in pictures
    )
    spoken = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Depth</title><style>{_STYLE}</style>'
        f"<h1>Depth</h1><ul>{spoken}</ul>{_table(study, found)}{images}</html>"
    )


def _table(study: Study, found: Sequence[Verdict]) -> str:
    """Return the test errors, mean and spread over the seeds, a row per target and remedy."""
    depths = sorted({row["depth"] for row in study.rows})
    head = "".join(f"<th>{depth}</th>" for depth in depths)
    body = []
    for verdict in found:
        mine = [row for row in study.rows if row["remedy"] == verdict.remedy and row["layer"] == 0]
        cells = []
        for depth in depths:
            values = [row[f"test_{verdict.target}"] for row in mine if row["depth"] == depth]
            spread = f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
            cells.append(f"<td>{np.mean(values):.4f}{spread}</td>" if values else "<td></td>")
        body.append(f"<tr><td>{escape(verdict.target)}, {escape(verdict.remedy)}</td>{''.join(cells)}</tr>")
    return f"<h2>Test error by layers</h2><table><tr><th></th>{head}</tr>{''.join(body)}</table>"
