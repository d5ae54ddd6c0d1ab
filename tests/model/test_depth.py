"""Measures of over-smoothing against closed forms, against plain numpy crystal by crystal, and hung on a network."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from ase.build import bulk

from cgnn.config import ModelConfig
from cgnn.data.dataset import collate
from cgnn.data.prototype import inequivalent_sites
from cgnn.graph import GraphBuilder
from cgnn.graph.fields import distances
from cgnn.model import CrystalGNN
from cgnn.model.depth import (
    MEASURES,
    Atoms,
    LayerWatch,
    dirichlet,
    effective_rank,
    mean_average_distance,
    relative_dirichlet,
    smoothness,
    watched,
)
from cgnn.model.remedies import REMEDIES
from cgnn.targets import Target

TARGETS = (Target(name="energy"),)
CRYSTALS = [
    bulk("NaCl", "rocksalt", a=5.64, cubic=True),
    bulk("ZnS", "zincblende", a=5.41),
    bulk("CsCl", "cesiumchloride", a=4.12).repeat((2, 1, 1)),
]


def together(h, index, sizes):
    crystal = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    return Atoms(h, crystal, len(sizes), index, torch.ones(index.shape[1], dtype=torch.float64))


def complete(n):
    return torch.tensor([(j, i) for i in range(n) for j in range(n) if i != j]).T


def path(n):
    return torch.tensor([(j, i) for i in range(n) for j in (i - 1, i + 1) if 0 <= j < n]).T


def one(measure, h, index):
    return float(measure(together(torch.as_tensor(h, dtype=torch.float64), index, [len(h)]))[0])


@pytest.mark.parametrize("n", [2, 5])
def test_orthonormal_features_on_a_complete_graph(n):
    """Each of n (n - 1) edges has the squared length 2; of n^2 pairs, n are an atom with itself."""
    h = np.eye(n)
    assert one(dirichlet, h, complete(n)) == pytest.approx(np.sqrt(2 * (n - 1)), rel=1e-14)
    assert one(relative_dirichlet, 3 * h, complete(n)) == pytest.approx(np.sqrt(2 * (n - 1)), rel=1e-14)
    assert one(mean_average_distance, 3 * h, complete(n)) == pytest.approx((n - 1) / n, rel=1e-14)
    assert one(effective_rank, 3 * h, complete(n)) == pytest.approx(n, rel=1e-12)


def test_a_ramp_on_a_path():
    """Features 1 to n along one direction: 2 (n - 1) edges of length 1, all parallel, rank one."""
    n = 6
    h = np.arange(1.0, n + 1)[:, None] * np.array([[0.6, 0.8]])
    energy = np.sqrt(2 * (n - 1) / n)
    assert one(dirichlet, h, path(n)) == pytest.approx(energy, rel=1e-14)
    size = np.sqrt((n + 1) * (2 * n + 1) / 6)
    assert one(relative_dirichlet, h, path(n)) == pytest.approx(energy / size, rel=1e-14)
    assert one(mean_average_distance, h, path(n)) == pytest.approx(0, abs=1e-15)
    assert one(effective_rank, h, path(n)) == pytest.approx(1, rel=1e-12)


def test_opposite_atoms_and_singular_values_of_known_size():
    h = np.array([[1.0, 0.0], [-1.0, 0.0]])
    assert one(mean_average_distance, h, complete(2)) == pytest.approx(1, rel=1e-14)  # (0 + 2 + 2 + 0) / 4
    p = np.array([0.75, 0.25])
    rank = one(effective_rank, np.diag([3.0, 1.0]), complete(2))
    assert rank == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-12)


def plainly(h, edges, weights):
    """The measures of one crystal, pair by pair."""
    n = len(h)
    energy = sum(w * np.sum((h[i] - h[j]) ** 2) for (j, i), w in zip(edges, weights, strict=True)) / n
    size = np.sqrt(np.linalg.norm(h) ** 2 / n)
    cosine = [[1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a in h] for b in h]
    values = np.sqrt(np.linalg.eigvalsh(h @ h.T)[::-1][: min(h.shape)].clip(0))
    p = values / values.sum()
    return {
        "dirichlet": np.sqrt(energy),
        "relative_dirichlet": np.sqrt(energy) / size,
        "mad": np.mean(cosine),
        "effective_rank": np.exp(-(p * np.log(p)).sum()),
    }


@pytest.fixture
def several(rng):
    """Crystals of 4, 1, 4 and 7 atoms with random edges, weights and features."""
    sizes, starts = [4, 1, 4, 7], np.array([0, 4, 5, 9])
    index = np.concatenate(
        [start + rng.integers(0, n, size=(2, 5 * n)) for n, start in zip(sizes, starts, strict=True)], axis=1
    )
    h = torch.from_numpy(rng.normal(size=(16, 5)) + 0.5)
    weight = torch.from_numpy(rng.uniform(size=index.shape[1]))
    return replace(together(h, torch.from_numpy(index), sizes), weight=weight)


@pytest.mark.parametrize("name", MEASURES)
def test_against_plain_numpy_crystal_by_crystal(name, several):
    found = MEASURES[name](several)
    assert found.shape == (4,)
    for crystal in range(4):
        mine = torch.nonzero(several.crystal == crystal)[:, 0]
        inside = several.crystal[several.edge_index[1]] == crystal
        edges = (several.edge_index[:, inside] - mine[0]).T.numpy()
        expected = plainly(several.h[mine].numpy(), edges, several.weight[inside].numpy())[name]
        assert float(found[crystal]) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", MEASURES)
def test_order_of_atoms_and_turned_features_do_not_matter(name, several, rng):
    order = torch.from_numpy(rng.permutation(16))
    place = torch.argsort(order)
    shuffled = replace(
        several, h=several.h[order], crystal=several.crystal[order], edge_index=place[several.edge_index]
    )
    torch.testing.assert_close(MEASURES[name](shuffled), MEASURES[name](several), rtol=1e-11, atol=1e-12)
    turn = torch.from_numpy(np.linalg.qr(rng.normal(size=(5, 5)))[0])
    turned = replace(several, h=several.h @ turn)
    torch.testing.assert_close(MEASURES[name](turned), MEASURES[name](several), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", ["relative_dirichlet", "mad", "effective_rank"])
def test_the_size_of_the_features_does_not_matter(name, several):
    larger = replace(several, h=1e3 * several.h)
    torch.testing.assert_close(MEASURES[name](larger), MEASURES[name](several), rtol=1e-12, atol=1e-12)


def test_equal_features_are_smooth_and_none_are_no_fault(several):
    equal = replace(several, h=several.h[:1].expand(16, -1).contiguous())
    nothing = replace(several, h=torch.zeros_like(several.h))
    for name, measure in MEASURES.items():
        expected = 1.0 if name == "effective_rank" else 0.0
        torch.testing.assert_close(measure(equal), torch.full((4,), expected).double(), rtol=0, atol=1e-12)
        torch.testing.assert_close(measure(nothing), torch.zeros(4).double(), rtol=0, atol=0)


# On a network


def network(**settings):
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return CrystalGNN(ModelConfig(width=8, depth=3, head_width=8, **settings), TARGETS)


@pytest.fixture(scope="module")
def batch():
    return collate([GraphBuilder().arrays(atoms) for atoms in CRYSTALS])


def hooks(model):
    return [h for m in model.modules() for h in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]


@pytest.mark.parametrize("remedy", REMEDIES)
def test_watching_changes_nothing_and_leaves_nothing(remedy, batch):
    model = network(remedy=remedy, residual=remedy != "residual").eval()
    before = model(batch)["energy"]
    with watched(model) as layers:
        assert torch.equal(model(batch)["energy"], before)
    assert hooks(model) == []
    assert len(layers) == 4
    assert torch.equal(layers[0], model.embed(batch.z))
    if remedy != "jumping":
        assert torch.equal(layers[-1], model.atom_features(batch))
    with pytest.raises(RuntimeError, match="broken"), watched(model):
        raise RuntimeError("broken")
    assert hooks(model) == []


def test_layers_crystal_by_crystal(batch):
    model = network().eval()
    found = smoothness(model, [batch, batch])
    assert set(found) == set(MEASURES)
    for values in found.values():
        assert values.shape == (4, 6)
        assert values.dtype == torch.float64
        assert torch.equal(values[:, :3], values[:, 3:])
    weight = (1 - (distances(batch) / batch.reach[batch.edge_index[1]]).clamp(max=1) ** 4) ** 2
    h = model.atom_features(batch).detach().double()
    expected = dirichlet(Atoms(h, batch.batch, 3, batch.edge_index, weight))
    # differences of single precision, summed in double
    torch.testing.assert_close(found["dirichlet"][-1, :3], expected, rtol=1e-6, atol=0)


def test_a_turned_crystal_and_a_larger_cell_measure_the_same():
    model = network().double().eval()
    turned, plain = CRYSTALS[1].copy(), CRYSTALS[1]
    turned.rotate(33, (1, 2, 3), rotate_cell=True)
    cells = [plain, turned, plain.repeat((2, 1, 1))]
    found = smoothness(model, [collate([GraphBuilder().arrays(cell) for cell in cells])])
    for name, values in found.items():
        assert values[:, 0].min() > 0, name
        torch.testing.assert_close(values[:, 1:], values[:, :1].expand(-1, 2), rtol=1e-6, atol=1e-9)


def test_inequivalent_sites_are_told_by_the_symmetry():
    silicon, tungsten = bulk("Si"), bulk("W", cubic=True)
    sites = [inequivalent_sites(GraphBuilder().arrays(atoms)) for atoms in (*CRYSTALS, silicon, tungsten, bulk("Cu"))]
    assert sites == [2, 2, 2, 1, 1, 1]
    moved = silicon.repeat((2, 1, 1))
    moved.positions[0] += 0.3, 0.2, 0.15
    assert inequivalent_sites(GraphBuilder().arrays(moved)) > 1


def test_gradients_and_updates_of_a_step(batch):
    model, plain = network(), network()
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.1) for each in (model, plain)]
    watch = LayerWatch(model)
    watch.begin()
    for each, optimizer in zip((model, plain), optimizers, strict=True):
        each(batch)["energy"].square().sum().backward()
        optimizer.step()
    rows = watch.end()
    for row, conv, other, old in zip(rows, model.convs, plain.convs, network().convs, strict=True):
        gradient = torch.cat([p.grad.flatten() for p in other.parameters()]).norm().item()
        assert row["gradient"] == pytest.approx(gradient, rel=1e-5)
        size = torch.cat([p.flatten() for p in old.parameters()]).norm().item()
        assert row["update"] == pytest.approx(0.1 * gradient / size, rel=1e-4)
        assert all(torch.equal(a, b) for a, b in zip(conv.parameters(), other.parameters(), strict=True))
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())
