"""The card of a model: what a person should know before using it, as Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pymatgen.core import Element

from cgnn.cli.report import architecture
from cgnn.config import Config
from cgnn.files import write_text
from cgnn.predict import Predictor
from cgnn.train.metrics import COLUMNS, table
from cgnn.train.trust.confidence import LEVEL, PART

PARTS = {"val": "validation part, which chose the epochs and calibrated the intervals", "test": "test part"}


def write_card(path: Path, predictor: Predictor, scores: Mapping[str, Any]) -> None:
    """Write the card of a model, named as the file.

    Args:
        path: The file.
        predictor: The model.
        scores: Part -> target -> scores, as ``metrics.json`` of a run holds them.
    """
    config = predictor.info.config
    parts = [
        f"# {path.stem}",
        _targets(config),
        "## Made from",
        _made(predictor),
        *(f"## Scores, {PARTS[part]}\n\n{_scores(found, config)}" for part, found in scores.items()),
        "## Errors and limits",
        _limits(predictor),
    ]
    write_text(path, "\n\n".join(parts) + "\n")


def read_scores(model: Path) -> dict[str, Any]:
    """Return the scores that lie beside the model of a run folder; none for anything else."""
    path = model / "metrics.json"
    return dict(json.loads(path.read_text())) if path.is_file() else {}


def _rows(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(header), *map(list, rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _targets(config: Config) -> str:
    rows = (
        [t.name, t.unit or "-", t.task, t.level, "as it is" if t.transform == "none" else t.transform]
        for t in config.targets
    )
    return _rows(("predicts", "unit", "task", "of each", "learned"), rows)


def _made(predictor: Predictor) -> str:
    info = predictor.info
    model, graph, settings, split = info.config.model, info.config.graph, info.config.train, info.config.data.split
    count = len(predictor.members)
    members = f"{count} networks, by {info.summary.get('by', '?')}, whose mean predicts" if count > 1 else "one network"
    start = f"; from {info.source['init_from']}" if "init_from" in info.source else ""
    how = "fitted at once" if model.is_fitted_at_once else f"{settings.epochs} epochs, batches of {settings.batch_size}"
    lines = [
        "Crystals: " + ", ".join(f"{key} {value}" for key, value in info.source.items() if key != "init_from"),
        f"Split: {split.method}, seed {split.seed}; {info.summary.get('train', '?')} crystals to learn "
        f"from, {info.summary.get('val', 0)} for validation, {info.summary.get('test', 0)} for testing",
        f"Network: {members}; {architecture(predictor)} each",
        f"Graphs: {graph.neighbors}, k {graph.k}, cutoff {graph.cutoff:g} Å",
        f"Training: {how}, loss {settings.loss}, seed {settings.seed}{start}",
        "Versions: " + ", ".join(f"{name} {version}" for name, version in info.versions.items()),
    ]
    return "\n".join(f"- {line}" for line in lines)


def _scores(found: Mapping[str, Any], config: Config) -> str:
    return _rows(COLUMNS, table(found, config.targets))


def _limits(predictor: Predictor) -> str:
    confidence = predictor.confidence
    names = ", ".join(target.name for target in confidence.targets)
    seen = " ".join(Element.from_Z(z).symbol for z in predictor.info.elements)
    lines = [
        f"{LEVEL:.0%} intervals of {names or 'nothing'} come from the residuals of the {PART} part; they hold for "
        "crystals like those, not for other chemistry.",
        f"Elements seen in training: {seen}. Crystals with others are flagged.",
    ]
    if confidence.novelty:
        lines.append("A novelty above 1 means: farther from the training crystals than 99 % of them from each other.")
    return "\n".join(f"- {line}" for line in lines)
