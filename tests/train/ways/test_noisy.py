"""Noisy nodes: the denoising loss joins that of the labels, and nothing of it stays."""

import numpy as np
import pytest
import torch
from train.ways.semi_settings import PARTS, crystals

from cgnn.config import build
from cgnn.errors import ConfigError
from cgnn.train import Ensemble, fit, train, train_ensemble
from cgnn.train.checkpoint import STATE_FILE, load_model, read_tensors
from cgnn.train.method import Method, Step
from cgnn.train.run import method_of
from cgnn.train.ways.noisy import NOISE, NoisyNodes
from cgnn.train.ways.perturb import moved


@pytest.fixture
def config(small_settings):
    return build(small_settings, ["model.remedy=noisy_nodes", "train.epochs=2"])


def test_the_loss_is_that_of_the_moved_crystals_and_of_the_noise(config):
    dataset = crystals(config)
    batch = dataset.batch(PARTS["train"][:6])
    method = method_of(config)
    assert isinstance(method, NoisyNodes)
    from cgnn.model import CrystalGNN

    torch.manual_seed(1)
    model, head = CrystalGNN(config.model, config.targets).eval(), method.extra()
    step = Step(model, model, None, batch, config.train, 0.0, PARTS["train"][:6])
    torch.manual_seed(2)
    found = method.loss(step)
    torch.manual_seed(2)
    changed, noise = moved(batch, NOISE)
    guess = head(model.atom_features(changed), changed, model.basis)
    expected = model.loss(model(changed), batch, "mae") + 0.1 * ((guess - noise) ** 2).sum() / noise.numel()
    torch.testing.assert_close(found.double(), expected.double(), rtol=1e-5, atol=1e-6)


def test_strength_zero_is_the_plain_way(config, tmp_path):
    values = config.model_dump(mode="json")
    plain = build(values, ["model.remedy=none"])
    without = build(values, ["model.remedy_strength=0.0"])
    assert type(method_of(without)) is Method
    dataset = crystals(config)
    models = [fit(each, dataset, PARTS, tmp_path / str(n), method=method_of(each)).model for n, each in
              enumerate((plain, without, config))]  # fmt: skip
    first, second, third = (model.state_dict() for model in models)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], third[name]) for name in first)


def test_a_run_goes_on_bit_for_bit_and_the_model_holds_no_head(config, tmp_path):
    whole = train(config, tmp_path / "whole")

    class Killed(BaseException):
        pass

    def kill(row):
        raise Killed

    with pytest.raises(Killed, match=r"^$"):
        train(config, tmp_path / "killed", report=kill)
    run = train(config, tmp_path / "killed", resume=True)
    assert run.model_file.read_bytes() == whole.model_file.read_bytes()
    tensors, _ = read_tensors(whole.folder / "last" / STATE_FILE)
    assert any(name.startswith("method.") for name in tensors)
    assert not any("method" in name for name in load_model(whole.model_file).members[0].state_dict())
    assert all(np.isfinite(row["train_loss"]) for row in whole.history)


def test_members_learn_it_too_but_not_with_crystals_that_count_differently(config, tmp_path):
    run = train_ensemble(config, tmp_path / "seeds", Ensemble(members=2, side_by_side="serial"))
    tensors, _ = read_tensors(run.folder / "members" / "0" / "last" / STATE_FILE)
    assert any(name.startswith("method.") for name in tensors)
    with pytest.raises(ConfigError, match="count differently"):
        train_ensemble(config, tmp_path / "drawn", Ensemble(members=2, side_by_side="serial", by="bootstrap"))
    with pytest.raises(ConfigError, match=r"model\.remedy"):
        train_ensemble(config, tmp_path / "batched", Ensemble(members=2, side_by_side="batched"))


def test_what_it_can_not_be_joined_to(config):
    with pytest.raises(ConfigError, match="precision 32-true"):
        method_of(build(config.model_dump(mode="json"), ["train.precision=64-true"]))
