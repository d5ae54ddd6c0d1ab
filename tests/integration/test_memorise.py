"""A small model learns eight crystals by heart: every part from file to prediction does its work."""

import json

import numpy as np
import pytest
from pymatgen.core import Structure

from cgnn.config import build
from cgnn.predict import Predictor
from cgnn.train import train

NAMES = ("bulk_modulus", "shear_modulus")


@pytest.fixture(scope="module")
def documents(embedded_documents):
    return embedded_documents[5::97][:8]


@pytest.fixture(scope="module")
def settings(documents, tmp_path_factory):
    folder = tmp_path_factory.mktemp("memorise")
    (folder / "export.json").write_text(json.dumps(documents))
    return {
        "targets": [
            {"name": name, "column": f"{name}.vrh", "unit": "GPa", "transform": "log10"} for name in NAMES
        ],
        "data": {"path": str(folder / "export.json"), "cache": str(folder), "split": {"val": 0.0, "test": 0.0}},
        "model": {"width": 16, "depth": 2, "gaussians": 16, "head_width": 16},
        "train": {"epochs": 100, "batch_size": 8, "learning_rate": 0.02, "ema": 0.9, "threads": 1, "device": "cpu"},
    }  # fmt: skip


@pytest.mark.parametrize("neighbors", ["nearest", "cgcnn"])
def test_eight_crystals_are_learned_by_heart(settings, documents, tmp_path, neighbors):
    run = train(build(settings, [f"graph.neighbors={neighbors}"]), tmp_path / "run")
    losses = [row["train_loss"] for row in run.history]
    assert losses[-1] < losses[0] / 20
    structures = [Structure.from_dict(document["structure"]) for document in documents]
    found = Predictor.load(run.folder, "cpu").predict(structures)
    for name in NAMES:
        truth = [document[name]["vrh"] for document in documents]
        assert np.abs(np.log10(found[name]) - np.log10(truth)).max() < 0.05
        assert np.std(np.log10(truth)) > 0.1  # it was no constant to be learned


def test_atoms_are_learned_by_heart(settings, documents, tmp_path):
    """Values per atom: 1 for each atom of the first element by name, -1 for the others."""
    labelled = []
    for document in documents:
        symbols = [site["species"][0]["element"] for site in document["structure"]["sites"]]
        labelled.append({**document, "sign": [1.0 if symbol == min(symbols) else -1.0 for symbol in symbols]})
    (tmp_path / "export.json").write_text(json.dumps(labelled))
    values = json.loads(json.dumps(settings))
    values["targets"] = [{"name": "sign", "level": "atom"}]
    values["data"] |= {"path": str(tmp_path / "export.json"), "cache": str(tmp_path)}
    run = train(build(values), tmp_path / "run")
    found = Predictor.load(run.folder, "cpu").predict(tmp_path / "export.json")
    for predicted, document in zip(found["sign"], labelled, strict=True):
        np.testing.assert_allclose(predicted, document["sign"], atol=0.3)
