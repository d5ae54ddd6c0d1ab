"""A small export of which some crystals are positive, and runs on it."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest

from cgnn.config import build
from cgnn.train.pu import pu_fit


@pytest.fixture(scope="session")
def pu_documents(embedded_documents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sixty different crystals; those with copper are known to exist (theoretical false)."""
    chosen = embedded_documents[::13][:60]
    return [{**d, "theoretical": not {"Cu"} & set(d["chemsys"].split("-"))} for d in chosen]


@pytest.fixture(scope="session")
def pu_settings(pu_documents: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Everything that keeps a state: dropout, schedule, averaged weights, early stopping, states in mid-epoch."""
    folder = tmp_path_factory.mktemp("pu")
    path = folder / "export.json"
    path.write_text(json.dumps(pu_documents))
    return {
        "targets": [{"name": "synthesizable", "task": "binary"}],
        "data": {"path": str(path), "cache": str(folder)},
        "model": {"width": 4, "depth": 1, "gaussians": 6, "head_width": 4, "dropout": 0.2, "elements": ["one_hot"]},
        "train": {
            "epochs": 3,
            "batch_size": 8,
            "learning_rate": 0.05,
            "ema": 0.9,
            "patience": 2,
            "checkpoint_every": 2,
            "device": "cpu",
        },
        "pu": {"bags": 3, "val": 0.2, "together": 2},
    }


@pytest.fixture(scope="session")
def pu_run(pu_settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run; not to be changed."""
    folder = tmp_path_factory.mktemp("pu_run") / "run"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*were drawn by all", UserWarning)  # three bags are few
        pu_fit(build(pu_settings), folder, side_by_side="serial")
    return folder
