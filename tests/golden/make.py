"""Make a golden model of this version of the model file and what it predicts.

    python tests/golden/make.py tests/golden/model-2

Run it when ``cgnn.train.checkpoint.VERSION`` is raised, under a new name; the old files stay.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from pymatgen.core import Lattice, Structure

from cgnn.config import Config, build
from cgnn.model import CrystalGNN
from cgnn.predict import Predictor
from cgnn.train.checkpoint import ModelInfo, save_model
from cgnn.train.trust.confidence import Confidence

FCC = [[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]
CRYSTALS = [
    {"lattice": (3.61 * np.eye(3)).tolist(), "species": ["Cu"] * 4, "coords": FCC},
    {"lattice": [[2.9, 0, 0], [0, 2.9, 0], [0, 0, 3.1]], "species": ["Ni", "Al"], "coords": [[0, 0, 0], [0.5] * 3]},
    {"lattice": [[3, 0, 0], [0.4, 3.5, 0], [0, -0.7, 5]], "species": ["Mg", "O"], "coords": [[0, 0, 0], [0.4] * 3]},
]
SETTINGS = {
    "targets": [
        {"name": "bulk_modulus", "column": "bulk_modulus.vrh", "unit": "GPa", "transform": "log10"},
        {"name": "energy", "unit": "eV/atom"},
        {"name": "is_metal", "task": "binary"},
        {"name": "system", "task": "multiclass", "classes": ["cubic", "other"]},
        {"name": "charge", "level": "atom", "unit": "e"},
    ],
    "model": {"width": 4, "depth": 2, "gaussians": 8, "head_width": 4, "elements": ["one_hot", "properties"]},
}


def _member(config: Config) -> CrystalGNN:
    model = CrystalGNN(config.model, config.targets)
    with torch.no_grad():
        for name, tensor in sorted(model.named_buffers()):
            if tensor.is_floating_point() and "table" not in name and "centers" not in name:
                tensor.copy_(torch.rand_like(tensor) + 0.5)
    return model.eval()


def _confidence(config: Config) -> Confidence:
    """Return what a model could know of its errors."""
    rng = np.random.default_rng(20261121)
    targets = [target for target in config.targets if target.task == "regression"]
    learned = {t.name: {"value": np.full(80, 2.0), "variance_between": rng.uniform(0, 0.1, 80)} for t in targets}
    for each in learned.values():
        each["scale_within"] = np.zeros(80)
    truth = {t.name: 10 ** rng.normal(2, 0.2, 80) if t.transform == "log10" else rng.normal(2, 1, 80) for t in targets}
    return Confidence.fit(targets, learned, truth, rng.normal(1, 0.1, (120, config.model.width)))


def make(stem: str) -> None:
    config = build(SETTINGS)
    torch.manual_seed(20261121)
    members = [_member(config), _member(config)]
    baselines = {"bulk_modulus": {"value": 100.0, "learned": 1.9}}
    known = _confidence(config)
    info = ModelInfo(
        config,
        elements=(8, 12, 13, 28, 29),
        baselines=baselines,
        summary={"epoch": 1},
        calibration=known.to_dict(),
        reference=known.to_tensors(),
    )
    save_model(f"{stem}.safetensors", members, info)
    crystals = [Structure(Lattice(c["lattice"]), c["species"], c["coords"]) for c in CRYSTALS]
    found = Predictor.load(f"{stem}.safetensors", "cpu").predict(crystals)
    columns = {
        name: [value if isinstance(value, str) else np.asarray(value).tolist() for value in values]
        for name, values in found.columns.items()
    }
    stored = {"crystals": CRYSTALS, "units": found.units, "predictions": columns}
    Path(f"{stem}.json").write_text(json.dumps(stored, indent=1) + "\n")


if __name__ == "__main__":
    make(sys.argv[1])
