"""Crystal graph neural networks that predict the properties of materials."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

# Threads that wait for each other sleep instead of spinning. On a machine with other work an epoch on two threads
# took up to fifty times as long with spinning; on an idle one it takes a sixth longer without. Read by OpenMP when
# torch is loaded, and left alone where it is set.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"

if TYPE_CHECKING:
    from cgnn.config import Config
    from cgnn.predict import Predictions, Predictor
    from cgnn.predict.pu import PUBagging
    from cgnn.targets import Target
    from cgnn.train import Run

__all__ = ["Config", "PUBagging", "Predictions", "Predictor", "Run", "Target"]

_HOMES = {
    "Config": "cgnn.config",
    "PUBagging": "cgnn.predict.pu",
    "Predictions": "cgnn.predict",
    "Predictor": "cgnn.predict",
    "Run": "cgnn.train",
    "Target": "cgnn.targets",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: torch takes seconds, ``cgnn --help`` should not."""
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module 'cgnn' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
