"""Denoising of positions, hidden elements, and the changes of crystals that they and others are made of."""

import copy

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from train.ways.semi_settings import PARTS, UNLABELLED, crystals, settings

from cgnn.errors import ConfigError
from cgnn.graph.fields import distances, vectors
from cgnn.model import CrystalGNN
from cgnn.train.method import Step
from cgnn.train.ways.perturb import dropping, lengths, moved, same_draws, without_elements
from cgnn.train.ways.pretrain import Denoising, MaskedElements, NoiseHead, pretrain_denoising, pretrain_masked_elements

LEARNED = ("embed.", "convs.")


@pytest.fixture
def config(small_settings):
    return settings(small_settings)


@pytest.fixture
def dataset(config):
    return crystals(config)


@pytest.fixture
def exact(config):
    """A network and a noise head in double precision."""
    torch.manual_seed(0)
    model = CrystalGNN(config.model, config.targets).double().eval()
    return model, NoiseHead(config.model.width, config.model.gaussians).double()


def turned(batch, rotation):
    changed = copy.copy(batch)
    changed.pos, changed.lattice = batch.pos @ rotation.T, batch.lattice @ rotation.T
    return changed


def noise_of(exact, batch):
    model, head = exact
    with torch.no_grad():
        return head(model.atom_features(batch), batch, model.basis)


def test_noise_vectors_turn_with_the_crystal(exact, dataset, rng):
    torch.manual_seed(1)
    batch = moved(dataset.batch(PARTS["train"]), 0.05)[0]  # crystals at rest have symmetries that hide errors
    before = noise_of(exact, batch)
    assert before.abs().max() > 1e-3
    rotation = torch.from_numpy(Rotation.random(random_state=int(rng.integers(1000))).as_matrix())
    torch.testing.assert_close(noise_of(exact, turned(batch, rotation)), before @ rotation.T, rtol=0, atol=1e-10)
    torch.testing.assert_close(noise_of(exact, turned(batch, -rotation)), -before @ rotation.T, rtol=0, atol=1e-10)


def test_noise_vectors_do_not_depend_on_where_the_crystal_is(exact, dataset):
    batch = moved(dataset.batch(PARTS["train"]), 0.05)[0]
    shifted = copy.copy(batch)
    shifted.pos = batch.pos + torch.tensor([1.0, -2.0, 0.5])
    torch.testing.assert_close(noise_of(exact, shifted), noise_of(exact, batch), rtol=0, atol=1e-10)


def test_noise_head_by_its_formula(exact, dataset):
    model, head = exact
    batch = moved(dataset.batch([0, 1]), 0.05)[0]
    h = model.atom_features(batch).detach()
    expected = torch.zeros(len(h), 3, dtype=torch.float64)
    for (j, i), vector in zip(batch.edge_index.T.tolist(), vectors(batch), strict=True):
        d = vector.norm()
        pair = head.target(h[i]) + head.source(h[j]) + head.edge(model.basis(d[None])[0])
        weight = (1 - min(float(d / batch.reach[i]), 1.0) ** 4) ** 2
        expected[i] += weight * head.out(pair * torch.sigmoid(pair)).detach()[0] * vector / d
    torch.testing.assert_close(noise_of(exact, batch), expected, rtol=1e-10, atol=1e-12)


def test_vectors_have_the_lengths_of_the_edges(dataset):
    batch = dataset.batch([0, 5])
    torch.testing.assert_close(vectors(batch).norm(dim=1), distances(batch), rtol=0, atol=0)
    single = dataset[5]
    torch.testing.assert_close(vectors(dataset.batch([5])), single.edge_vectors(), rtol=0, atol=1e-12)


def test_noise_has_the_spread_asked_for_and_no_mean(dataset):
    torch.manual_seed(0)
    batch = dataset.batch(np.tile(np.arange(40), 50))
    changed, shift = moved(batch, 0.02)
    found = (changed.pos - batch.pos) / (0.02 * lengths(batch)[batch.batch][:, None])
    torch.testing.assert_close(found, shift, rtol=0, atol=1e-9)
    mean = torch.zeros(batch.num_graphs, 3, dtype=torch.float64).index_add(0, batch.batch, shift)
    assert mean.abs().max() < 1e-12
    atoms = torch.bincount(batch.batch).double()
    # centring takes one of N degrees of freedom; 6000 crystals give the variance to 2 %
    expected = float(3 * (atoms - 1).sum())
    assert float(shift.square().sum()) == pytest.approx(expected, rel=0.03)
    assert batch.pos.equal(dataset.batch(np.tile(np.arange(40), 50)).pos)


def test_lengths_by_hand(dataset):
    single = dataset[3]
    volume = abs(float(np.linalg.det(single.lattice[0])))
    assert float(lengths(dataset.batch([3]))[0]) == pytest.approx((volume / len(single.z)) ** (1 / 3), rel=1e-12)


def test_hidden_elements_are_really_hidden(config, dataset):
    """Whatever element a hidden atom has, the network is given the same."""
    model = CrystalGNN(config.model, config.targets).eval()
    batch = dataset.batch(PARTS["train"])
    other = copy.copy(batch)
    with same_draws(3):
        changed, is_hidden = without_elements(batch, 0.3)
    other.z = torch.where(is_hidden, (batch.z + 7) % 90 + 1, batch.z)
    assert 0 < int(is_hidden.sum()) < len(is_hidden)
    with same_draws(3):
        swapped, again = without_elements(other, 0.3)
    assert torch.equal(is_hidden, again)
    assert torch.equal(changed.z, swapped.z)
    assert torch.equal(changed.z[~is_hidden], batch.z[~is_hidden])
    with torch.no_grad():
        assert torch.equal(model.atom_features(changed), model.atom_features(swapped))
        assert not torch.equal(model.atom_features(changed), model.atom_features(batch))


def test_share_of_hidden_elements(dataset):
    torch.manual_seed(0)
    _, is_hidden = without_elements(dataset.batch(np.tile(np.arange(40), 100)), 0.15)
    assert float(is_hidden.double().mean()) == pytest.approx(0.15, abs=0.01)  # some 15,000 atoms: five sigma


def test_one_element_at_least_is_hidden(dataset):
    lone = dataset.batch([int(np.argmin(dataset.sizes()[0]))])
    assert int(without_elements(lone, 1e-9)[1].sum()) == 1


def test_dropping_a_share_of_features():
    torch.manual_seed(0)
    layer = torch.nn.Identity().eval()
    ones = torch.ones(10_000)
    with dropping(layer, 0.25):
        found = layer(ones)
    assert float((found == 0).double().mean()) == pytest.approx(0.25, abs=0.025)
    torch.testing.assert_close(found[found > 0], torch.full_like(found[found > 0], 1 / 0.75))
    assert torch.equal(layer(ones), ones)


def test_same_draws_leave_the_others_alone():
    torch.manual_seed(5)
    expected = torch.rand(4)
    torch.manual_seed(5)
    first = torch.rand(2)
    draws = []
    for _ in range(2):
        with same_draws(1):
            draws.append(torch.rand(3))
    assert torch.equal(*draws)
    assert torch.equal(torch.cat([first, torch.rand(2)]), expected)


def test_losses_by_their_formulas(config, dataset):
    torch.manual_seed(0)
    model = CrystalGNN(config.model, config.targets).eval()
    batch = dataset.batch([0, 1, 2, 3])
    step = Step(model, model, None, batch, config.train, 0.0, np.arange(4))
    denoising, masked = Denoising(config, 0.02), MaskedElements(config, 0.5)
    noise_head, classifier = denoising.extra(), masked.extra()
    with same_draws(1), torch.no_grad():
        found = float(denoising.loss(step))
    with same_draws(1), torch.no_grad():
        changed, shift = moved(batch, 0.02)
        guess = noise_head(model.atom_features(changed), changed, model.basis)
        assert found == pytest.approx(float((guess - shift).square().mean()), rel=1e-5)
    with same_draws(2), torch.no_grad():
        found = float(masked.loss(step))
    with same_draws(2), torch.no_grad():
        changed, is_hidden = without_elements(batch, 0.5)
        likely = torch.log_softmax(classifier(model.atom_features(changed)), dim=1)
        expected = -likely[is_hidden, batch.z[is_hidden]].mean()
        assert found == pytest.approx(float(expected), rel=1e-5)


def test_only_the_layers_of_atoms_are_learned(config, dataset, tmp_path):
    from cgnn.train.engine import seed

    for name, way in (("noise", pretrain_denoising), ("masked", pretrain_masked_elements)):
        fitted = way(config, dataset, PARTS, UNLABELLED, tmp_path / name)
        assert fitted.info.baselines == {}
        seed(config.train.seed, "weights")
        fresh = dict(CrystalGNN(config.model, config.targets).named_parameters())
        for key, parameter in fitted.model.named_parameters():
            moved_at_all = not torch.equal(parameter, fresh[key])
            assert moved_at_all == key.startswith(LEARNED), key


@pytest.mark.parametrize("way", [pretrain_denoising, pretrain_masked_elements])
def test_the_task_is_learned(way, small_settings, tmp_path):
    """A few more steps bring the loss on the held-out part down, which is changed alike in every epoch."""
    config = settings(small_settings, train__epochs=25, train__learning_rate=0.02, model__width=8)
    history = way(config, crystals(config), PARTS, UNLABELLED, tmp_path).history
    scores = [row["val_score"] for row in history]
    assert min(scores) < 0.9 * scores[0]
    if way is pretrain_masked_elements:
        assert all(0 <= row["val_right"] <= 1 for row in history)


def test_labels_are_not_needed(config, dataset, tmp_path):
    nothing = {"train": np.array([], dtype=np.int64), "val": PARTS["val"]}
    bare = dataset.hidden(np.arange(len(dataset)))
    fitted = pretrain_denoising(config, bare, nothing, UNLABELLED, tmp_path)
    assert fitted.info.summary["train"] == len(UNLABELLED)


@pytest.mark.parametrize(
    ("way", "changes", "words"),
    [
        (pretrain_denoising, {"noise": 0.0}, r"noise: expected a number above 0, got 0\.0"),
        (pretrain_masked_elements, {"share": 1.0}, r"share: expected a number between 0 and 1, got 1\.0"),
    ],
)
def test_settings_that_do_not_fit(config, dataset, tmp_path, way, changes, words):
    with pytest.raises(ConfigError, match=words):
        way(config, dataset, PARTS, UNLABELLED, tmp_path, **changes)


def test_one_device_only(small_settings, tmp_path):
    config = settings(small_settings, train__devices=2)
    with pytest.raises(ConfigError, match="a self-supervised task is learned on one device"):
        pretrain_denoising(config, crystals(config), PARTS, UNLABELLED, tmp_path)
