"""What the tests of learning from unlabelled crystals share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from cgnn.config import Config, build
from cgnn.data.dataset import CrystalDataset
from cgnn.data.prepare import prepare

PARTS = {"train": np.arange(12), "val": np.arange(12, 18)}
UNLABELLED = np.arange(20, 36)


def settings(small: dict[str, Any], **changes: Any) -> Config:
    """Return settings with everything that keeps a state: dropout, averaged weights, states in mid-epoch."""
    values = {
        **small,
        "model": {**small["model"], "width": 4, "depth": 1, "spread": True, "dropout": 0.1},
        "train": {**small["train"], "batch_size": 5, "epochs": 2, "checkpoint_every": 2, "ema": 0.9},
    }
    for key, value in changes.items():
        section, name = key.split("__")
        values[section] = {**values[section], name: value}
    return build(values)


def crystals(config: Config) -> CrystalDataset:
    """Return the crystals of the settings."""
    return CrystalDataset(prepare(config.data, config.graph), config.targets)


def model_bytes(folder: Path) -> bytes:
    """Return the model file of a run folder."""
    return (folder / "best" / "model.safetensors").read_bytes()
