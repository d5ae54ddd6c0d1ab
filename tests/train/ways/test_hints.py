"""Hints: a source that stays, as it is, inside the network that learns."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pymatgen.core import Structure

from cgnn.cli.report import describe
from cgnn.config import Config, build
from cgnn.data.dataset import CrystalDataset
from cgnn.data.prepare import prepare
from cgnn.errors import CheckpointError, ConfigError
from cgnn.predict import Predictor
from cgnn.train import train, train_ensemble
from cgnn.train.checkpoint import MODEL_FILE, load_model
from cgnn.train.ensembles.ensemble import Ensemble
from cgnn.train.ways.transfer import REPORT_FILE, Transfer, with_hints

Small = dict[str, Any]


def settings(small: Small, init_from: Path | str, *changes: str, **transfer: Any) -> Config:
    """Return settings of a run with hints of another one."""
    return build({**small, "transfer": {"init_from": str(init_from), "hints": True, **transfer}}, changes)


def test_the_source_stays_as_it_is_and_the_matrix_learns(small_settings: Small, trained: Path, tmp_path: Path) -> None:
    run = train(settings(small_settings, trained, "train.ema=0.9"), tmp_path / "run")
    (model,), info = load_model(run.folder / "best" / MODEL_FILE)
    (source,), _ = load_model(trained / "best" / MODEL_FILE)
    assert model.hints is not None
    kept = model.hints.network.state_dict()
    for name, tensor in source.state_dict().items():
        assert torch.equal(kept[name], tensor), name
    assert model.hints.linear.weight.abs().max() > 0
    assert info.config.model.hints is not None
    assert info.config.model.hints.targets == source.targets


def test_what_is_added_is_a_matrix_of_the_sources_outputs(small_settings: Small, trained: Path, tmp_path: Path) -> None:
    """Features of six crystals: pooled ones plus W o, with o from the source alone; single precision."""
    config = with_hints(settings(small_settings, trained))
    model = load_model(train(config, tmp_path / "run").folder / "best" / MODEL_FILE).members[0]
    (source,), _ = load_model(trained / "best" / MODEL_FILE)
    batch = CrystalDataset(prepare(config.data, config.graph), config.targets).batch(np.arange(6))
    hints = model.hints
    assert hints is not None
    with torch.no_grad():
        outputs = torch.cat([raw[:, :1] for raw in source(batch).values()], dim=1)
        with_them = model.crystal_features(model.atom_features(batch), batch)
        model.hints = None
        without = model.crystal_features(model.atom_features(batch), batch)
    expected = outputs @ hints.linear.weight.T
    assert expected.abs().max() > 1e-4
    torch.testing.assert_close(with_them - without, expected, rtol=1e-4, atol=1e-5)


def test_only_hints_from_a_network_of_another_shape(small_settings: Small, trained: Path, tmp_path: Path) -> None:
    """Nothing of it fits, and nothing needs to."""
    changes = ("model.width=12", "model.depth=1", "model.activation=silu")
    run = train(settings(small_settings, trained, *changes), tmp_path / "run")
    assert load_model(run.folder / "best" / MODEL_FILE).members[0].hints is not None
    report = json.loads((run.folder / REPORT_FILE).read_text())
    assert (report["loaded"], report["hints"]) == ([], ["bulk_modulus", "shear_modulus"])
    assert "gives hints: bulk_modulus, shear_modulus\n" in describe(Predictor.load(run.folder))


def test_predictions_need_no_source(
    small_settings: Small, trained: Path, tmp_path: Path, embedded_documents: Any
) -> None:
    source = tmp_path / "source"
    shutil.copytree(trained, source)
    run = train(settings(small_settings, source), tmp_path / "run")
    shutil.rmtree(source)
    structure = Structure.from_dict(embedded_documents[0]["structure"])
    found = Predictor.load(run.folder).predict_structure(structure)
    assert np.isfinite(found["bulk_modulus"])


def test_members_have_the_same_source(small_settings: Small, trained: Path, tmp_path: Path) -> None:
    config = settings(small_settings, trained, "train.epochs=1", take=["embed", "convs"])
    train_ensemble(config, tmp_path / "run", Ensemble(2, side_by_side="serial"))
    one, other = load_model(tmp_path / "run" / "best" / MODEL_FILE).members
    assert one.hints is not None
    assert other.hints is not None
    theirs = other.hints.network.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in one.hints.network.state_dict().items())
    assert not torch.equal(one.hints.linear.weight, other.hints.linear.weight)


def test_folding_changes_no_number(small_settings: Small, trained: Path, tmp_path: Path) -> None:
    config = with_hints(settings(small_settings, trained))
    model = load_model(train(config, tmp_path / "run").folder / "best" / MODEL_FILE).members[0]
    batch = CrystalDataset(prepare(config.data, config.graph), config.targets).batch(np.arange(6))
    with torch.no_grad():
        for name, raw in model(batch).items():
            torch.testing.assert_close(model.folded()(batch)[name], raw, rtol=1e-4, atol=1e-5)


def test_impossible_hints(small_settings: Small, trained: Path, tmp_path: Path) -> None:
    run = train(settings(small_settings, trained, "train.epochs=1"), tmp_path / "run")
    with pytest.raises(ConfigError, match="a network with hints of its own can't give hints"):
        train(settings(small_settings, run.folder), tmp_path / "twice")
    with pytest.raises(ConfigError, match=r"set by transfer\.hints: true, never by hand"):
        build(small_settings, ["model.hints={model: {}, targets: [{name: x}]}"])
    with pytest.raises(ConfigError, match="no room for the source"):
        Transfer(settings(small_settings, trained), tmp_path)
    with pytest.raises(CheckpointError, match="nowhere: no model found"):
        train(settings(small_settings, tmp_path / "nowhere"), tmp_path / "none")
    with pytest.raises(ConfigError, match=r"graph\.k is 12 there, 8 here"):
        train(settings(small_settings, trained, "graph.k=8"), tmp_path / "graphs")
