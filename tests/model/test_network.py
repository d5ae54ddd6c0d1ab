"""The network as a whole: batches, several targets, missing labels."""

import copy

import numpy as np
import pytest
import torch
from ase.build import bulk
from torch_geometric.data import Batch

from cgnn.config import GraphConfig, ModelConfig
from cgnn.data.dataset import collate
from cgnn.errors import ConfigError
from cgnn.graph import GraphBuilder
from cgnn.model import CrystalGNN
from cgnn.model.conv import Edges
from cgnn.model.embed import envelope
from cgnn.model.network import raw_outputs
from cgnn.targets import Target

TARGETS = (
    Target(name="bulk_modulus", transform="log10", unit="GPa"),
    Target(name="magnetic", task="binary", weight=0.5),
    Target(name="kind", task="multiclass", classes=("metal", "salt", "other")),
    Target(name="charge", level="atom", weight=2.0),
)
CRYSTALS = [
    bulk("Cu"),
    bulk("NaCl", "rocksalt", a=5.64, cubic=True),
    bulk("Si"),
    bulk("ZnS", "zincblende", a=5.41).repeat((2, 1, 1)),
]
SIZES = [len(atoms) for atoms in CRYSTALS]
NAN = float("nan")


def network(**settings: object) -> CrystalGNN:
    with torch.random.fork_rng():
        torch.manual_seed(20261121)
        return CrystalGNN(ModelConfig(width=12, depth=2, head_width=10, **settings), TARGETS).double()


@pytest.fixture(scope="module")
def graphs() -> list[dict[str, np.ndarray]]:
    return [GraphBuilder().arrays(atoms) for atoms in CRYSTALS]


def labelled(graphs: list[dict[str, np.ndarray]]) -> Batch:
    batch = collate(graphs)
    batch.y_bulk_modulus = torch.tensor([140.0, 25.0, NAN, 77.0], dtype=torch.float64)
    batch.y_magnetic = torch.tensor([0.0, NAN, 1.0, 0.0], dtype=torch.float64)
    batch.y_kind = torch.tensor([0.0, 1.0, 2.0, NAN], dtype=torch.float64)
    charges = np.linspace(-1, 1, sum(SIZES))
    charges[[0, 3, 7]] = np.nan
    batch.y_charge = torch.from_numpy(charges)
    return batch


def test_outputs_have_the_shape_of_their_level(graphs):
    raw = network()(collate(graphs))
    shapes = {name: tuple(output.shape) for name, output in raw.items()}
    assert shapes == {"bulk_modulus": (4, 1), "magnetic": (4, 1), "kind": (4, 3), "charge": (sum(SIZES), 1)}


def test_decoded_outputs_have_the_shape_of_their_task(graphs):
    model = network()
    decoded = model.decode(model(collate(graphs)))
    shapes = {name: tuple(values.shape) for name, values in decoded.items()}
    assert shapes == {"bulk_modulus": (4,), "magnetic": (4,), "kind": (4, 3), "charge": (sum(SIZES),)}
    assert (decoded["bulk_modulus"] > 0).all()
    torch.testing.assert_close(decoded["kind"].sum(1), torch.ones(4, dtype=torch.float64))


@pytest.mark.parametrize("pooling", ["mean", "sum", "max", "attention"])
def test_a_batch_gives_what_its_crystals_give_alone(pooling, graphs):
    model = network(pooling=pooling)
    with torch.no_grad():
        model.train()(collate(graphs))
        model.eval()
        together = model(collate(graphs))
        alone = [model(collate([graph])) for graph in graphs]
    for name, output in together.items():
        torch.testing.assert_close(output, torch.cat([raw[name] for raw in alone]), rtol=1e-12, atol=1e-12)


def test_raw_outputs_joins_batches(graphs):
    model = network().eval()
    with torch.no_grad():
        together = model(collate(graphs))
    joined = raw_outputs(model, [collate(graphs[:1]), collate(graphs[1:])])
    for name, output in together.items():
        torch.testing.assert_close(joined[name], output, rtol=1e-12, atol=1e-12)


def test_the_order_of_the_crystals_does_not_matter(graphs):
    model = network().eval()
    with torch.no_grad():
        raw, reverse = model(collate(graphs)), model(collate(graphs[::-1]))
    for name in ("bulk_modulus", "magnetic", "kind"):
        torch.testing.assert_close(reverse[name].flip(0), raw[name], rtol=1e-12, atol=1e-12)


def test_pygs_own_batch_gives_the_same(graphs):
    model, builder = network().eval(), GraphBuilder()
    with torch.no_grad():
        raw, theirs = model(collate(graphs)), model(Batch.from_data_list([builder(atoms) for atoms in CRYSTALS]))
    for name, output in raw.items():
        assert torch.equal(output, theirs[name])


def test_the_network_is_the_sum_of_its_parts(graphs):
    """Distances, envelope, convolutions and pooling put together by hand for one crystal."""
    model = network().eval()
    graph = GraphBuilder()(CRYSTALS[3])
    distance = graph.edge_vectors().norm(dim=1)
    weight = envelope(distance, graph.reach[graph.edge_index[1]])
    with torch.no_grad():
        h = model.embed(graph.z)
        for conv in model.convs:
            h = conv(h, Edges(graph.edge_index, weight[:, None], model.basis(distance)))
        expected = model.head("bulk_modulus")(h.mean(0, keepdim=True))
        raw = model(collate(graphs[3:]))
    torch.testing.assert_close(raw["bulk_modulus"], expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(raw["charge"], model.head("charge")(h), rtol=1e-12, atol=1e-12)


def test_an_empty_last_crystal_does_not_vanish(graphs):
    batch = collate(graphs)
    batch._num_graphs += 1
    raw = network().eval()(batch)
    assert len(raw["bulk_modulus"]) == 5
    assert torch.isfinite(raw["bulk_modulus"]).all()


def test_distances_are_taken_in_double_precision(graphs):
    """A crystal 1e5 Å from the origin: float32 positions there are steps of 0.008 Å apart."""
    far = CRYSTALS[1].copy()
    far.positions += 1e5
    model = network().float().eval()
    with torch.no_grad():
        near, away = (
            model(collate([GraphBuilder(GraphConfig(max_atoms=10)).arrays(atoms)])) for atoms in (CRYSTALS[1], far)
        )
    torch.testing.assert_close(away["bulk_modulus"], near["bulk_modulus"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("train", [True, False])
def test_depth_zero_and_one_crystal_of_one_atom(train, graphs):
    for depth in (0, 1):
        model = CrystalGNN(ModelConfig(width=8, depth=depth), TARGETS)
        model.train(train)
        raw = model(collate(graphs[:1]))
        assert all(torch.isfinite(output).all() for output in raw.values())


# Loss


def test_the_loss_is_the_weighted_sum_of_the_means_over_known_labels(graphs):
    model, batch = network().eval(), labelled(graphs)
    model.head("bulk_modulus").fit_scaling(np.array([20.0, 200.0, 90.0]))
    raw = model(batch)
    head = model.head("bulk_modulus")
    scaled = (np.log10([140.0, 25.0, 77.0]) - head.mean.item()) / head.std.item()
    bulk_modulus = (raw["bulk_modulus"][[0, 1, 3], 0] - torch.from_numpy(scaled)).abs().mean()
    p = torch.sigmoid(raw["magnetic"][[0, 2, 3], 0])
    magnetic = -torch.log(torch.stack([1 - p[0], p[1], 1 - p[2]])).mean()
    kind = -torch.log_softmax(raw["kind"][:3], 1).diagonal().mean()
    known = torch.isfinite(batch.y_charge)
    charge = (raw["charge"][known, 0] - batch.y_charge[known]).abs().mean()
    expected = bulk_modulus + 0.5 * magnetic + kind + 2.0 * charge
    torch.testing.assert_close(model.loss(raw, batch, "mae"), expected, rtol=1e-12, atol=1e-12)


def gradients(model: CrystalGNN, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    raw = {name: output.detach().requires_grad_() for name, output in model(batch).items()}
    loss = model.loss(raw, batch, "mae")
    if loss.requires_grad:
        loss.backward()
    zero = {name: torch.zeros_like(output) for name, output in raw.items()}
    return loss, {name: zero[name] if raw[name].grad is None else raw[name].grad for name in raw}


def test_unknown_labels_have_no_gradient(graphs):
    model, batch = network().eval(), labelled(graphs)
    loss, gradient = gradients(model, batch)
    assert torch.isfinite(loss)
    for target in TARGETS:
        known = torch.isfinite(batch[target.field])
        assert gradient[target.name][known].abs().sum(1).min() > 0
        assert not gradient[target.name][~known].any()


def test_a_crystal_without_labels_does_not_change_loss_or_weight_gradients(graphs):
    model, batch = network().eval(), labelled(graphs[:3] + graphs[3:])
    for target in TARGETS:
        labels = batch[target.field]
        labels[-1 if target.level == "crystal" else slice(-SIZES[-1], None)] = NAN
    less = collate(graphs[:3])
    for target in TARGETS:
        less[target.field] = batch[target.field][: 3 if target.level == "crystal" else sum(SIZES[:3])]
    grads = []
    for given in (batch, less):
        fresh = copy.deepcopy(model)
        loss = fresh.loss(fresh(given), given, "mse")
        loss.backward()
        grads.append([loss, *(parameter.grad for parameter in fresh.parameters())])
    for one, other in zip(*grads, strict=True):
        assert torch.isfinite(one).all()
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_a_target_without_any_label_adds_nothing(graphs):
    model, batch = network().eval(), labelled(graphs)
    for target in TARGETS[1:]:
        batch[target.field][:] = NAN
    loss, gradient = gradients(model, batch)
    assert loss > 0
    assert gradient["bulk_modulus"].any()
    assert not any(gradient[target.name].any() for target in TARGETS[1:])


def test_no_labels_at_all_give_loss_zero(graphs):
    model, batch = network().eval(), labelled(graphs)
    for target in TARGETS:
        batch[target.field][:] = NAN
    assert gradients(model, batch)[0] == 0


def test_unknown_names_are_refused(graphs):
    with pytest.raises(ConfigError, match="unknown pooling 'meen'; did you mean 'mean'"):
        network(pooling="meen")
    model, batch = network(), labelled(graphs)
    with pytest.raises(ConfigError, match="unknown loss 'l1'"):
        model.loss(model(batch), batch, "l1")


@pytest.mark.parametrize("pair_norm", ["batch", "layer", "none"])
def test_a_folded_network_predicts_the_same(pair_norm, graphs):
    model = network(pair_norm=pair_norm)
    batch = collate(graphs)
    for _ in range(3):
        model.train()(batch)  # running statistics that are neither zero nor one
    before = {name: values.clone() for name, values in model.state_dict().items()}
    folded = model.folded()
    assert not folded.training
    assert not any(name.endswith("pair_norm.running_mean") for name in folded.state_dict())
    with torch.no_grad():
        raw, expected = folded(batch), model.eval()(batch)
    for name in raw:
        torch.testing.assert_close(raw[name], expected[name], rtol=1e-12, atol=1e-12)
    assert all(torch.equal(values, before[name]) for name, values in model.state_dict().items())


def test_a_crystal_counts_as_often_as_its_weight_says(graphs):
    """Weights two, one, zero and one: the first crystal twice, the third left out; atoms as their crystals."""
    model = network().eval()
    picked = [0, 0, 1, 3]
    whole, drawn = labelled(graphs), collate([graphs[place] for place in picked])
    for target in TARGETS:
        cuts = SIZES if target.level == "atom" else [1] * len(SIZES)
        values = whole[target.field].split(cuts)
        drawn[target.field] = torch.cat([values[place] for place in picked])
    with torch.no_grad():
        weights = torch.tensor([2.0, 1.0, 0.0, 1.0], dtype=torch.float64)
        found = model.loss(model(whole), whole, "mae", weights)
        torch.testing.assert_close(found, model.loss(model(drawn), drawn, "mae"), rtol=1e-12, atol=0)
        ones = torch.ones(4, dtype=torch.float64)
        plain = model.loss(model(whole), whole, "mae")
        torch.testing.assert_close(model.loss(model(whole), whole, "mae", ones), plain, rtol=1e-12, atol=0)
        assert float(model.loss(model(whole), whole, "mae", 0 * ones)) == 0
