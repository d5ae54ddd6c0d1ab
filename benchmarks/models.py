"""A model to predict with: the numbers it gives do not matter here, so it is not trained."""

from __future__ import annotations

from pathlib import Path

from cgnn.config import GraphConfig, build
from cgnn.model import CrystalGNN
from cgnn.train.checkpoint import MODEL_FILE, ModelInfo, save_model


def write_model(folder: Path, graph: GraphConfig | None = None) -> Path:
    """Write a model of the default width and depth on graphs of some settings, by default ours; return its file."""
    target = {"name": "bulk_modulus", "unit": "GPa", "transform": "log10"}
    config = build({"targets": [target], "graph": (graph or GraphConfig()).model_dump()})
    model = CrystalGNN(config.model, config.targets)
    path = folder / MODEL_FILE
    save_model(path, [model], ModelInfo(config=config, elements=tuple(range(1, 119))))
    return path
