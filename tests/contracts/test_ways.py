"""Every way of learning from unlabelled crystals meets one contract."""

import json

import numpy as np
import pytest
import torch
from train.ways.semi_settings import PARTS, UNLABELLED, crystals, model_bytes, settings

from cgnn.errors import DataError
from cgnn.train import loop
from cgnn.train.checkpoint import STATE_FILE, load_model, read_tensors
from cgnn.train.ways.semi import WAYS


class Killed(BaseException):
    """Stands for kill -9."""


@pytest.fixture(params=WAYS)
def way(request):
    return WAYS[request.param]


@pytest.fixture
def config(small_settings):
    return settings(small_settings)


def kill_after(patch, steps):
    real = loop._Session._step
    count = 0

    def stepped(self, indices):
        nonlocal count
        if count == steps:
            raise Killed
        count += 1
        real(self, indices)

    patch.setattr(loop._Session, "_step", stepped)


def test_leaves_a_model_that_loads_and_rows_of_the_held_out_part(way, config, tmp_path):
    rows = []
    fitted = way(config, crystals(config), PARTS, UNLABELLED, tmp_path, report=rows.append)
    (model,), info = load_model(tmp_path / "best" / "model.safetensors")
    assert info.config.targets == config.targets
    assert not model.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, fitted.model.state_dict()[name])
    assert len(fitted.history) == config.train.epochs
    assert rows[-2:] == fitted.history
    assert all(np.isfinite(row["val_score"]) for row in rows)
    assert [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()] == fitted.history


def test_unlabelled_labels_are_never_looked_at(way, config, tmp_path):
    dataset = crystals(config)
    way(config, dataset, PARTS, UNLABELLED, tmp_path / "true")
    for name, factor in (("large", 1e6), ("unknown", np.nan)):
        labels = {target.name: dataset.label(target) for target in config.targets}
        for column in labels.values():
            column[UNLABELLED] *= factor
        way(config, dataset.relabelled(labels), PARTS, UNLABELLED, tmp_path / name)
        assert model_bytes(tmp_path / name) == model_bytes(tmp_path / "true")


def test_unlabelled_crystals_are_used(way, config, tmp_path):
    dataset = crystals(config)
    way(config, dataset, PARTS, UNLABELLED, tmp_path / "some")
    way(config, dataset, PARTS, UNLABELLED[:9] + 1, tmp_path / "others")
    assert model_bytes(tmp_path / "some") != model_bytes(tmp_path / "others")


def test_killed_and_resumed_ends_with_the_same_bits(way, config, tmp_path, monkeypatch):
    dataset = crystals(config)
    way(config, dataset, PARTS, UNLABELLED, tmp_path / "unbroken")
    expected = read_tensors(tmp_path / "unbroken" / "last" / STATE_FILE)[0]
    kills = 0
    while True:
        with monkeypatch.context() as patch:
            kill_after(patch, 5)
            try:
                way(config, dataset, PARTS, UNLABELLED, tmp_path / "run", resume=True)
                break
            except Killed:
                kills += 1
    assert 0 < kills < 30
    assert model_bytes(tmp_path / "run") == model_bytes(tmp_path / "unbroken")
    found = read_tensors(tmp_path / "run" / "last" / STATE_FILE)[0]
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_crystals_of_the_validation_part_are_refused(way, config, tmp_path):
    with pytest.raises(DataError, match="1 unlabelled crystals are in part 'val' too, such as"):
        way(config, crystals(config), PARTS, np.array([13, 20]), tmp_path)
