"""Settings of small runs."""

import orjson
import pytest


@pytest.fixture(scope="module")
def settings(embedded_documents, tmp_path_factory):
    """Everything that keeps a state: dropout, schedule, averaged weights, early stopping, states in mid-epoch."""
    folder = tmp_path_factory.mktemp("small")
    path = folder / "export.json"
    path.write_bytes(orjson.dumps(embedded_documents[::20][:24]))
    return {
        "targets": [
            {"name": "bulk_modulus", "column": "bulk_modulus.vrh", "unit": "GPa", "transform": "log10"},
            {"name": "shear_modulus", "column": "shear_modulus.vrh", "unit": "GPa", "transform": "log10"},
        ],
        "data": {"path": str(path), "cache": str(folder), "split": {"val": 0.2, "test": 0.1}},
        "model": {"width": 4, "depth": 1, "gaussians": 6, "head_width": 4, "dropout": 0.2, "elements": ["one_hot"]},
        "train": {
            "epochs": 4,
            "batch_size": 5,
            "learning_rate": 0.05,
            "ema": 0.9,
            "patience": 2,
            "checkpoint_every": 2,
            "device": "cpu",
        },
    }
