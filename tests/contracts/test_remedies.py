"""Every remedy for depth meets one contract, and each its formula."""

import copy
import math

import numpy as np
import pytest
import torch
from ase.build import bulk
from torch.nn.functional import softplus

from cgnn.config import ModelConfig
from cgnn.data.dataset import collate
from cgnn.errors import ConfigError
from cgnn.graph import GraphBuilder
from cgnn.kernels import load
from cgnn.model import CrystalGNN
from cgnn.model.remedies import REMEDIES, strength_of
from cgnn.targets import Target

TARGETS = (Target(name="energy"), Target(name="charge", level="atom"))
CRYSTALS = [bulk("NaCl", "rocksalt", a=5.64, cubic=True), bulk("Cu"), bulk("ZnS", "zincblende", a=5.41)]
ACTING = [name for name in REMEDIES if name not in ("none", "noisy_nodes")]
"""Those that change what the network computes."""


def network(remedy="none", strength=None, seed=7, **settings):
    settings.setdefault("residual", remedy != "residual")
    config = ModelConfig(width=6, head_width=6, remedy=remedy, remedy_strength=strength, **{"depth": 3, **settings})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return CrystalGNN(config, TARGETS)


@pytest.fixture(params=REMEDIES)
def remedy(request):
    return request.param


@pytest.fixture(scope="module")
def graphs():
    return [GraphBuilder().arrays(atoms) for atoms in CRYSTALS]


@pytest.fixture
def batch(graphs):
    return collate(graphs)


def called(model, batch):
    with torch.random.fork_rng():
        torch.manual_seed(11)
        return model(batch)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("depth", [0, 1, 4])
def test_shapes_and_gradients_at_any_depth(remedy, depth, train, batch):
    model = network(remedy, depth=depth).train(train)
    raw = called(model, batch)
    assert {name: tuple(output.shape) for name, output in raw.items()} == {"energy": (3, 1), "charge": (11, 1)}
    (raw["energy"].sum() + raw["charge"].sum()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), name
    own = [parameter for parameter in model.remedy.parameters() if depth and parameter.ndim > 1]
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in own if depth > 1)


@pytest.mark.parametrize("train", [True, False])
def test_does_nothing_at_strength_zero(remedy, train, batch):
    plain, model = (network(name, 0.0, residual=remedy != "residual").train(train) for name in ("none", remedy))
    for name, output in called(plain, batch).items():
        assert torch.equal(called(model, batch)[name], output)


@pytest.mark.parametrize("name", ACTING)
def test_does_something_at_its_usual_strength(name, batch):
    plain, model = network(residual=name != "residual").train(), network(name).train()
    assert 0 < strength_of(model.config) <= 1
    assert not torch.allclose(called(plain, batch)["energy"], called(model, batch)["energy"], rtol=1e-3)


def test_the_rest_of_the_network_starts_the_same(remedy):
    plain, model = network(), network(remedy)
    for name, tensor in plain.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)
    assert all(name in plain.state_dict() or name.startswith("remedy.") for name in model.state_dict())


def test_the_order_of_the_atoms_does_not_matter(remedy, rng):
    model = network(remedy).double().eval()
    atoms = CRYSTALS[0]
    order = rng.permutation(len(atoms))
    batches = [collate([GraphBuilder().arrays(each)]) for each in (atoms, atoms[order])]
    first, second = (model(batch) for batch in batches)
    torch.testing.assert_close(second["energy"], first["energy"], rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(second["charge"], first["charge"][order], rtol=1e-10, atol=1e-11)


def test_turned_crystals_and_supercells_predict_the_same(remedy):
    model = network(remedy).double().eval()
    plain, turned = CRYSTALS[2], CRYSTALS[2].copy()
    turned.rotate(40, (1, -2, 3), rotate_cell=True)
    batch = collate([GraphBuilder().arrays(atoms) for atoms in (plain, turned, plain.repeat((2, 1, 1)))])
    energy = model(batch)["energy"]
    torch.testing.assert_close(energy, energy[:1].expand(3, 1), rtol=1e-8, atol=1e-9)


def test_a_batch_predicts_what_its_crystals_do_alone(remedy, graphs, batch):
    model = network(remedy).double().eval()
    alone = torch.cat([model(collate([graph]))["energy"] for graph in graphs])
    torch.testing.assert_close(model(batch)["energy"], alone, rtol=1e-11, atol=1e-12)


def test_a_single_atom_trains(remedy, graphs):
    output = called(network(remedy).train(), collate(graphs[1:2]))["energy"]
    output.sum().backward()
    assert torch.isfinite(output).all()


def test_prediction_repeats_and_draws_nothing(remedy, batch):
    model = network(remedy).eval()
    state = torch.get_rng_state()
    assert torch.equal(model(batch)["energy"], model(batch)["energy"])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("settings", [{}, {"edge_updates": True, "activation": "silu"}], ids=str)
def test_the_compiled_kernels_stay_in_use(remedy, settings, batch, monkeypatch):
    if load("gate") is None:
        pytest.skip("the kernels were not built")
    model = network(remedy, **settings).eval()
    slow = copy.deepcopy(model)
    slow.may_fuse = False
    expected = slow(batch)["energy"]
    monkeypatch.setattr("cgnn.model.conv.GatedConv._plain", None)
    torch.testing.assert_close(model(batch)["energy"], expected, rtol=1e-4, atol=1e-5)
    called(model.train(), batch)["energy"].sum().backward()


def test_folded_and_loaded_networks_predict_the_same(remedy, batch):
    model = network(remedy)
    for _ in range(3):
        called(model.train(), batch)
    expected = model.eval()(batch)["energy"]
    torch.testing.assert_close(model.folded()(batch)["energy"], expected, rtol=1e-4, atol=1e-5)
    with torch.device("meta"):  # as a model file is read
        twin = CrystalGNN(model.config, TARGETS)
    twin.load_state_dict(model.state_dict(), assign=True)
    assert torch.equal(twin.eval()(batch)["energy"], expected)


# Formulas


@pytest.fixture
def layers(rng):
    """Features of eleven atoms after the embedding and two layers, and what the third gives."""
    return [torch.from_numpy(rng.normal(size=(11, 6))) for _ in range(3)], torch.from_numpy(rng.normal(size=(11, 6)))


def test_residual_is_the_layers_own_at_strength_one(batch):
    plain, model = network().eval(), network("residual").eval()
    assert torch.equal(model(batch)["energy"], plain(batch)["energy"])
    with pytest.raises(ConfigError, match=r"set model\.residual to false"):
        network("residual", residual=True)


@pytest.mark.parametrize("residual", [True, False])
def test_identity_skip(residual, layers):
    (h, messages), model = layers, network("identity_skip", 0.4, residual=residual).remedy
    x = h[2] + messages if residual else messages
    found = model(softplus(model.mixed(x, h)), h, None)
    expected = 0.4 * h[2] + softplus(messages + 0.6 * h[2] if residual else messages)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("residual", [True, False])
def test_layer_scale(residual, layers):
    (h, messages), model = layers, network("layer_scale", 0.4, residual=residual).double().remedy
    assert torch.stack([*model.scales]).allclose(torch.tensor(0.1, dtype=torch.float64))
    model.scales[2].data = torch.linspace(-1, 1, 6, dtype=torch.float64)
    x = h[2] + messages if residual else messages
    found = model(softplus(model.mixed(x, h)), h, None)
    given = softplus(messages + 0.6 * h[2] if residual else messages)
    expected = 0.4 * h[2] + (0.6 + 0.4 * model.scales[2]) * given
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_dense(layers):
    (h, _), model = layers, network("dense", 0.4).double().remedy
    assert model.taken(h[:1]) is h[0]
    join = model.joins[1]
    expected = 0.6 * h[2] + 0.4 * (torch.cat(h, dim=1) @ join.weight.T + join.bias)
    torch.testing.assert_close(model.taken(h), expected, rtol=1e-12, atol=1e-12)


def test_initial_residual(layers):
    """GCNII, eq. 5, in the third layer with alpha = 0.1 and lambda = 0.5."""
    (h, x), model = layers, network("initial_residual").double().remedy
    beta = math.log(0.5 / 3 + 1)
    mapped = (1 - beta) * torch.eye(6, dtype=torch.float64) + beta * model.maps[2].weight.T
    torch.testing.assert_close(model.mixed(x, h), (0.9 * x + 0.1 * h[0]) @ mapped, rtol=1e-12, atol=1e-12)


def test_jumping(layers):
    (h, last), model = layers, network("jumping", 0.3).double().remedy
    every = [*h, last]
    expected = 0.7 * last + 0.3 * (torch.cat(every, dim=1) @ model.out.weight.T + model.out.bias)
    torch.testing.assert_close(model.pooled(every), expected, rtol=1e-12, atol=1e-12)


def test_pair_norm(layers, batch):
    (h, given), model = layers, network("pair_norm", 0.4).remedy
    found = model(given, h, batch)
    for crystal in range(3):
        mine = given[batch.batch == crystal]
        away = mine - mine.mean(0)
        size = math.sqrt(0.01 * 6 + float(away.square().sum()) / len(mine))
        expected = 0.6 * mine + 0.4 * (mine.mean(0) + math.sqrt(6) * away / size)
        torch.testing.assert_close(found[batch.batch == crystal], expected, rtol=1e-12, atol=1e-12)


def test_drop_edge():
    model = network("drop_edge", 0.25).remedy
    weight = torch.rand(20_000, dtype=torch.float64) + 0.5
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = model.train().weights(weight)
    kept = found != 0
    torch.testing.assert_close(found[kept], weight[kept] / 0.75, rtol=1e-14, atol=0)
    assert float(kept.double().mean()) == pytest.approx(0.75, abs=4 * math.sqrt(0.25 * 0.75 / 20_000))
    assert torch.equal(model.eval().weights(weight), weight)


def test_group_norm(layers, batch):
    (h, given), model = layers, network("group_norm", 0.3).double().train().remedy
    share = torch.softmax(given @ model.norms[2].lin.weight.T, dim=1)
    expected = given.clone()
    for group in range(10):
        part = share[:, group, None] * given
        expected += 0.3 * (part - part.mean(0)) / torch.sqrt(part.var(0, unbiased=False) + 1e-5)
    torch.testing.assert_close(model(given, h, batch), expected, rtol=1e-10, atol=1e-11)


def test_stochastic_depth(layers, batch):
    (h, given), model = layers, network("stochastic_depth", 0.6).remedy
    found = model.eval()(given, h, batch)  # the third of three layers is kept with probability 0.4
    torch.testing.assert_close(found, h[2] + 0.4 * (given - h[2]), rtol=1e-12, atol=1e-12)
    kept = []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(400):
            found = model.train()(given, h, batch)
            for crystal in range(3):
                mine = batch.batch == crystal
                kept.append(torch.equal(found[mine], given[mine]))
                assert kept[-1] or torch.equal(found[mine], h[2][mine])
    assert np.mean(kept) == pytest.approx(0.4, abs=4 * math.sqrt(0.24 / 1200))


def test_the_layer_applies_its_activation_to_what_a_remedy_mixed(batch):
    model = network("initial_residual", 1.0).double().eval()
    model.remedy.maps[2].weight.data = torch.eye(6, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(model.atom_features(batch), softplus(model.embed(batch.z)), rtol=1e-12, atol=1e-12)


def test_unknown_remedies_and_strengths_are_refused():
    with pytest.raises(ConfigError, match="unknown remedy 'pairnorm'; did you mean 'pair_norm'"):
        network("pairnorm")
    with pytest.raises(ValueError, match="less than or equal to 1"):
        ModelConfig(remedy_strength=1.5)
