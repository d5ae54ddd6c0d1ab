"""Every entry of `NEIGHBORS` meets one contract."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk

from cgnn.config import GraphConfig, ModelConfig
from cgnn.data.dataset import collate
from cgnn.errors import CrystalError
from cgnn.graph import NEIGHBORS, GraphBuilder
from cgnn.graph.fields import validate
from cgnn.graph.neighbors import Neighbors
from cgnn.model import CrystalGNN
from cgnn.targets import Target

pytestmark = [pytest.mark.parametrize("name", NEIGHBORS), pytest.mark.usefixtures("way")]


def config(name: str, **settings: float) -> GraphConfig:
    return GraphConfig(neighbors=name, **({"cutoff": 5.0} if name == "radius" else {}) | settings)


def crystals(rng: np.random.Generator) -> list[Atoms]:
    """Crystals with ties, low symmetry, one atom, and atoms outside the cell."""
    rattled = bulk("NaCl", "rocksalt", a=5.64, cubic=True)
    rattled.positions += rng.normal(scale=0.05, size=rattled.positions.shape)
    outside = bulk("ZnS", "zincblende", a=5.41)
    outside.positions += rng.integers(-3, 4, size=(2, 3)) @ outside.cell
    skewed = bulk("Ti")
    skewed.set_cell(np.array([[1, 0, 0], [2, 1, 0], [-1, 2, 1]]) @ skewed.cell)
    return [bulk("Cu"), bulk("Fe"), bulk("Si"), rattled, outside, skewed]


def find(name: str, atoms: Atoms) -> Neighbors:
    return NEIGHBORS[name](atoms.positions, np.array(atoms.cell), config(name))


def test_edges_are_sorted_by_target_then_distance(name, rng):
    for atoms in crystals(rng):
        found = find(name, atoms)
        assert len(found.source) > 0
        assert np.array_equal(np.lexsort((found.distance, found.target)), np.arange(len(found.target)))


def test_shapes_and_ranges(name, rng):
    for atoms in crystals(rng):
        found = find(name, atoms)
        edges = len(found.source)
        assert found.target.shape == found.distance.shape == (edges,)
        assert found.shift.shape == (edges, 3)
        assert found.reach.shape == (len(atoms),)
        for ends in (found.source, found.target):
            assert ends.min() >= 0
            assert ends.max() < len(atoms)


def test_fields_have_the_stored_dtypes(name, rng):
    for atoms in crystals(rng):
        found = find(name, atoms)
        assert found.source.dtype == found.target.dtype == np.int32
        assert found.shift.dtype == np.int16
        assert found.distance.dtype == found.reach.dtype == np.float64


def test_edges_without_own_reaches_come_in_pairs(name, rng):
    if name not in ("radius", "voronoi"):
        pytest.skip("each atom has its own reach")
    for atoms in crystals(rng):
        found = find(name, atoms)
        there = np.column_stack([found.source, found.target, found.shift])
        back = np.column_stack([found.target, found.source, -found.shift])
        assert np.array_equal(np.unique(there, axis=0), np.unique(back, axis=0))


def test_no_atom_is_its_own_neighbor_and_no_edge_comes_twice(name, rng):
    for atoms in crystals(rng):
        found = find(name, atoms)
        itself = (found.source == found.target) & ~found.shift.any(axis=1)
        assert not itself.any()
        assert len(np.unique(np.column_stack([found.source, found.target, found.shift]), axis=0)) == len(found.source)


def test_vectors_reproduce_the_distances(name, rng):
    for atoms in crystals(rng):
        found = find(name, atoms)
        vectors = atoms.positions[found.source] + found.shift @ np.array(atoms.cell) - atoms.positions[found.target]
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), found.distance, rtol=0, atol=1e-9)


def test_reach_lies_beyond_every_edge(name, rng):
    for atoms in crystals(rng):
        found = find(name, atoms)
        assert (found.reach > 0).all()
        assert (found.distance < found.reach[found.target]).all()


def test_neighbors_lie_within_the_cutoff(name, rng):
    for atoms in crystals(rng):
        found = NEIGHBORS[name](atoms.positions, np.array(atoms.cell), config(name, cutoff=3.0))
        assert (found.distance <= 3.0 * (1 + 1e-8)).all()


def test_nothing_nearer_is_left_out(name, rng):
    """Every atom not linked is at least as far as the farthest that is."""
    if name == "voronoi":
        pytest.skip("the nearer ones may hide behind others")
    for atoms in crystals(rng):
        found = find(name, atoms)
        everyone = NEIGHBORS["radius"](atoms.positions, np.array(atoms.cell), config("radius", cutoff=8.0))
        for atom in range(len(atoms)):
            near = np.sort(found.distance[found.target == atom])
            expected = np.sort(everyone.distance[everyone.target == atom])[: len(near)]
            np.testing.assert_allclose(near, expected, rtol=0, atol=1e-9)


def test_inputs_stay_as_they_are(name, rng):
    for atoms in crystals(rng):
        pos, lattice = atoms.positions.copy(), np.array(atoms.cell)
        find(name, atoms)
        assert np.array_equal(pos, atoms.positions)
        assert np.array_equal(lattice, np.array(atoms.cell))


def test_graphs_are_valid_and_the_same_each_time(name, rng):
    builder = GraphBuilder(config(name))
    for atoms in crystals(rng):
        first, second = builder.arrays(atoms), builder.arrays(atoms)
        validate(first)
        for field, values in first.items():
            assert np.array_equal(values, second[field])


def test_overlapping_atoms_are_refused(name):
    close = Atoms("Cu2", scaled_positions=[[0, 0, 0], [0.98, 0, 0]], cell=np.eye(3) * 4, pbc=True)
    with pytest.raises(CrystalError, match=r"atoms 0 and 1 .* 0\.080 Å apart") as caught:
        GraphBuilder(config(name))(close)
    assert caught.value.code == "overlap"


def predict(name: str, atoms: Atoms) -> float:
    with torch.random.fork_rng():
        torch.manual_seed(20261121)
        network = CrystalGNN(ModelConfig(width=16, depth=2), [Target(name="modulus")]).double().eval()
    with torch.no_grad():
        return float(network(collate([GraphBuilder(config(name)).arrays(atoms)]))["modulus"])


@pytest.mark.parametrize("positions", [[[0, 0, 0]], [[0, 0, 0], [1.6, 0, 0]], [[0, 0, 0], [3, 0, 0], [0, 3.1, 0]]])
def test_isolated_atoms_have_no_fake_neighbors(name, positions):
    """Neither the box nor the order of the atoms matters where fewer than k neighbours lie within the cutoff."""
    numbers = [3, 9, 8][: len(positions)]
    first = predict(name, Atoms(numbers, positions=positions, cell=np.eye(3) * 20, pbc=True))
    assert np.isfinite(first)
    larger = Atoms(numbers, positions=positions, cell=np.diag([27.0, 33.0, 45.0]), pbc=True)
    swapped = Atoms(numbers[::-1], positions=positions[::-1], cell=np.eye(3) * 20, pbc=True)
    assert predict(name, larger) == pytest.approx(first, rel=1e-12)
    assert predict(name, swapped) == pytest.approx(first, rel=1e-12)


def test_a_slab_does_not_see_its_vacuum(name):
    def slab(height: float) -> Atoms:
        return Atoms("Cu2", positions=[[0, 0, 0], [1.8, 1.8, 1.8]], cell=np.diag([3.6, 3.6, height]), pbc=True)

    assert predict(name, slab(25.0)) == pytest.approx(predict(name, slab(60.0)), rel=1e-12)
