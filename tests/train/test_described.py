"""Descriptors made once: the same numbers, made again where they do not fit, and never those of a changed crystal."""

import numpy as np
import pytest
import torch

from cgnn.config import build
from cgnn.data.dataset import CrystalDataset
from cgnn.data.prepare import prepare
from cgnn.model import CrystalGNN
from cgnn.model.descriptors import changed, field_of
from cgnn.train import described
from cgnn.train.described import describe
from cgnn.train.trust.assess import features_part
from cgnn.train.ways.perturb import moved, without_elements

NAMES = ["volume", "environments"]


@pytest.fixture
def config(small_settings):
    return build({**small_settings, "model": {**small_settings["model"], "descriptors": NAMES}})


@pytest.fixture
def dataset(config):
    return CrystalDataset(prepare(config.data, config.graph), config.targets)


def features(config, dataset):
    torch.manual_seed(0)
    return features_part(CrystalGNN(config.model, config.targets).eval(), dataset, np.arange(len(dataset)))


def test_a_network_sees_the_same_and_does_not_make_them_again(config, dataset, tmp_path, monkeypatch):
    before = features(config, dataset)
    describe(dataset, config, tmp_path / "descriptors.safetensors")
    monkeypatch.setattr("cgnn.model.descriptors.Environments.forward", lambda *_: pytest.fail("made again"))
    np.testing.assert_array_equal(features(config, dataset), before)
    again = CrystalDataset(dataset.store, config.targets)
    describe(again, config, tmp_path / "descriptors.safetensors")
    np.testing.assert_array_equal(features(config, again), before)
    order = [3, 0, 2]
    torch.testing.assert_close(
        again.batch(order)[field_of(NAMES)], dataset.batch(range(len(dataset)))[field_of(NAMES)][order]
    )


def test_nothing_is_written_without_descriptors(small_settings, dataset, tmp_path):
    describe(dataset, build(small_settings), tmp_path / "descriptors.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_network_with_other_descriptors_makes_its_own(config, dataset, tmp_path):
    other = config.model_copy(update={"model": config.model.model_copy(update={"descriptors": NAMES[::-1]})})
    before = features(other, dataset)
    describe(dataset, config, tmp_path / "descriptors.safetensors")
    np.testing.assert_array_equal(features(other, dataset), before)


def test_a_damaged_file_or_one_of_other_crystals_is_made_again(config, dataset, tmp_path, monkeypatch):
    path = tmp_path / "descriptors.safetensors"
    describe(dataset, config, path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    with pytest.warns(UserWarning, match="made again"):
        describe(dataset, config, path)
    assert path.read_bytes() == whole
    fewer = CrystalDataset(dataset.store, config.targets)
    fewer.rows, fewer.ids = fewer.rows[1:], fewer.ids[1:]
    describe(fewer, config, path)
    assert path.read_bytes() != whole
    torch.testing.assert_close(fewer.batch([0])[field_of(NAMES)], dataset.batch([1])[field_of(NAMES)])
    monkeypatch.setattr(described, "VERSION", described.VERSION + 1)
    made = path.read_bytes()
    describe(fewer, config, path)
    assert path.read_bytes() != made


def test_a_changed_crystal_has_its_own(config, dataset, tmp_path):
    describe(dataset, config, tmp_path / "descriptors.safetensors")
    batch = dataset.batch(range(4))
    for other in (moved(batch, 0.1)[0], without_elements(batch, 0.5)[0], changed(batch, lattice=1.1 * batch.lattice)):
        assert field_of(NAMES) not in other
    assert field_of(NAMES) in batch


def test_values_of_another_number_of_crystals_are_refused(dataset):
    with pytest.raises(ValueError, match="rows for"):
        dataset.give("mine", torch.zeros(len(dataset) + 1))
