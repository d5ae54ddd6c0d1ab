"""From a crystal to its graph: what is refused, what is kept, and the key of the settings."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from pymatgen.core import DummySpecies, Lattice, Structure
from pymatgen.io.ase import AseAtomsAdaptor

from cgnn.config import GraphConfig
from cgnn.errors import ConfigError, CrystalError, DataError
from cgnn.graph import NEIGHBORS, CrystalGraph, GraphBuilder, fingerprint
from cgnn.graph.crystal import Crystal
from cgnn.graph.fields import FIELDS, validate


def rock_salt(a: float = 5.64) -> Structure:
    return Structure.from_spacegroup("Fm-3m", Lattice.cubic(a), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])


def refused(crystal: object, code: str, match: str, **settings: object) -> None:
    with pytest.raises(CrystalError, match=match) as caught:
        GraphBuilder(GraphConfig(**settings))(crystal)
    assert caught.value.code == code


# The graph


def test_fields_have_their_shapes_and_dtypes():
    graph = GraphBuilder()(rock_salt())
    assert isinstance(graph, CrystalGraph)
    edges = graph.num_edges
    shapes = {"z": (8,), "pos": (8, 3), "reach": (8,), "lattice": (1, 3, 3), "edge_index": (2, edges)}
    shapes["edge_shift"] = (edges, 3)
    assert {name: tuple(graph[name].shape) for name in shapes} == shapes
    assert graph.z.dtype == graph.edge_index.dtype == torch.int64
    assert all(graph[name].dtype == torch.float64 for name in ("pos", "reach", "lattice", "edge_shift"))
    assert graph.z.tolist() == [11] * 4 + [17] * 4


def test_stored_fields_have_the_dtypes_of_the_table():
    arrays = GraphBuilder().arrays(rock_salt())
    assert {name: str(values.dtype) for name, values in arrays.items()} == {
        name: field.stored for name, field in FIELDS.items()
    }


def test_rock_salt_by_hand():
    # 6 neighbours at a/2, 12 at a/sqrt(2), and 8 at a sqrt(3)/2 within 1.25 times the twelfth: 0.884 a.
    graph = GraphBuilder()(rock_salt())
    assert graph.num_edges == 8 * (6 + 12 + 8)
    distances, counts = np.unique(graph.edge_vectors().norm(dim=1).numpy().round(9), return_counts=True)
    np.testing.assert_allclose(distances, 5.64 * np.sqrt([0.25, 0.5, 0.75]), rtol=1e-9)
    assert counts.tolist() == [48, 96, 64]
    np.testing.assert_allclose(graph.reach, 4.963016, rtol=1e-6)  # 6 + 12 S(5.64 / sqrt(2) / r) = 11.5 at r = 3.970413


def test_positions_outside_the_cell_stay_where_they_are():
    outside = Structure(Lattice.cubic(4), ["Cs", "Cl"], [[-3, 7.5, 0.2], [0.5, 0.5, 0.5]])
    arrays = GraphBuilder().arrays(outside)
    np.testing.assert_allclose(arrays["pos"][0], [-12, 30, 0.8])
    validate(arrays)


@pytest.mark.parametrize("neighbors", NEIGHBORS)
def test_ase_atoms_give_the_same_graph_as_pymatgen(neighbors, embedded_documents):
    builder = GraphBuilder(GraphConfig(neighbors=neighbors, cutoff=6.01))
    for document in embedded_documents[::100]:
        structure = Structure.from_dict(document["structure"])
        atoms = AseAtomsAdaptor.get_atoms(structure)
        ours, theirs = builder.arrays(structure), builder.arrays(atoms)
        for name in ("z", "pos", "reach", "lattice"):
            np.testing.assert_allclose(ours[name], theirs[name], rtol=0, atol=1e-9)
        assert len(ours["source"]) == len(theirs["source"])
        if neighbors != "cgcnn":  # there rounding chooses between equals
            assert edge_set(ours) == edge_set(theirs)


@pytest.mark.parametrize("neighbors", NEIGHBORS)
def test_bare_arrays_give_the_same_graph_as_pymatgen(neighbors, embedded_documents):
    builder = GraphBuilder(GraphConfig(neighbors=neighbors, cutoff=6.01))
    for document in embedded_documents[::100]:
        structure = Structure.from_dict(document["structure"])
        crystal = Crystal(np.array(structure.atomic_numbers), structure.cart_coords, structure.lattice.matrix)
        ours, theirs = builder.arrays(crystal), builder.arrays(structure)
        assert all(np.array_equal(ours[name], theirs[name]) for name in FIELDS)


def test_a_graph_shares_no_memory_with_bare_arrays():
    crystal = Crystal(np.array([29]), np.zeros((1, 3)), np.eye(3) * 2.6)
    arrays = GraphBuilder().arrays(crystal)
    assert not np.shares_memory(arrays["pos"], crystal.pos)
    assert not np.shares_memory(arrays["lattice"], crystal.lattice)


@pytest.mark.parametrize("order", ["C", "F"])
def test_the_layout_of_the_memory_does_not_matter(order):
    pos = np.array([[0.1, 0.2, 0.3], [1.9, 2.2, 2.6]], order=order)
    lattice = np.array([[4.0, 0.5, 0.0], [0.0, 4.2, 0.3], [0.6, 0.0, 4.4]], order=order)
    strided = Crystal(np.array([11, 17]), np.repeat(pos, 2, axis=0)[::2], lattice)
    plain = GraphBuilder().arrays(Crystal(np.array([11, 17]), pos.copy("C"), lattice.copy("C")))
    assert all(np.array_equal(values, plain[name]) for name, values in GraphBuilder().arrays(strided).items())


def edge_set(arrays: dict[str, np.ndarray]) -> list[tuple[int, ...]]:
    return sorted(map(tuple, np.column_stack([arrays["target"], arrays["source"], arrays["edge_shift"]]).tolist()))


def test_oxidation_states_do_not_matter():
    plain, charged = rock_salt(), rock_salt()
    charged.add_oxidation_state_by_element({"Na": 1, "Cl": -1})
    one, other = GraphBuilder().arrays(plain), GraphBuilder().arrays(charged)
    assert all(np.array_equal(one[name], other[name]) for name in FIELDS)


def test_deuterium_is_hydrogen():
    graph = GraphBuilder()(Structure(Lattice.cubic(3), ["D", "Li"], [[0, 0, 0], [0.5, 0.5, 0.5]]))
    assert graph.z.tolist() == [1, 3]


@pytest.mark.parametrize("neighbors", NEIGHBORS)
def test_inputs_are_not_changed(neighbors):
    builder = GraphBuilder(GraphConfig(neighbors=neighbors, cutoff=5.0))
    structure, atoms = rock_salt(), bulk("NaCl", "rocksalt", a=5.64)
    before, copied = structure.as_dict(), atoms.copy()
    graph = builder(structure)
    graph.pos += 1  # the graph shares no memory with the crystal either
    other = builder(atoms)
    other.pos += 1
    other.lattice *= 2
    assert structure.as_dict() == before
    assert atoms == copied


# What is refused


@pytest.mark.parametrize("site", [{"Cu": 0.5, "Au": 0.5}, {"Cu": 0.5}, {"Cu": 0.9, "Au": 0.1}])
def test_partial_occupancy_is_refused(site):
    alloy = Structure(Lattice.cubic(3.6), ["Cu", site], [[0, 0, 0], [0.5, 0.5, 0.5]])
    refused(alloy, "disordered", "partial or mixed occupancy")


def test_a_dummy_species_is_refused():
    vacancy = Structure(Lattice.cubic(3), [DummySpecies("X"), "Li"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    refused(vacancy, "unknown_element", "no chemical element")


@pytest.mark.parametrize("number", [0, -1, 119, 300])
def test_atomic_numbers_of_no_element_are_refused_in_ase_atoms(number):
    atoms = bulk("NaCl", "rocksalt", a=5.64)
    atoms.numbers[1] = number
    refused(atoms, "unknown_element", "not from 1 to 118")


@pytest.mark.parametrize("pbc", [False, (True, True, False)])
def test_what_is_not_periodic_is_refused(pbc):
    refused(Atoms("Cu", cell=np.eye(3) * 3, pbc=pbc), "not_periodic", "not periodic in all three")
    flat = Structure(Lattice(np.eye(3) * 3, pbc=(True, True, False)), ["Cu"], [[0, 0, 0]])
    refused(flat, "not_periodic", "not periodic in all three")


@pytest.mark.parametrize("thing", [None, 3, "NaCl", {"lattice": 1}])
def test_what_is_no_crystal_is_refused(thing):
    refused(thing, "not_a_crystal", f"got {type(thing).__name__}")


def test_no_atoms_are_refused():
    refused(Atoms(cell=np.eye(3), pbc=True), "empty", "no atoms")


def test_too_many_atoms_are_refused_before_the_search(monkeypatch):
    monkeypatch.setitem(NEIGHBORS, "nearest", lambda *_: pytest.fail("searched"))
    refused(bulk("Cu").repeat(3), "too_large", r"27 atoms, the limit is 26 \(graph.max_atoms\)", max_atoms=26)


def test_too_many_edges_are_refused():
    refused(bulk("Cu"), "too_large", r"18 edges, the limit is 17 \(graph.max_edges\)", max_edges=17, reach=1.45)


def test_an_overlap_with_an_image_is_refused():
    refused(Atoms("H", cell=np.diag([0.4, 8, 8]), pbc=True), "overlap", r"atoms 0 and 0 .* 0\.400 Å apart")
    across = Atoms("H2", positions=[[0.1, 0, 0], [3.8, 0, 0]], cell=np.eye(3) * 4, pbc=True)
    refused(across, "overlap", r"atoms 0 and 1 .* 0\.300 Å apart")


def test_two_atoms_on_one_spot_are_refused():
    refused(Atoms("H2", positions=np.ones((2, 3)), cell=np.eye(3) * 4, pbc=True), "overlap", r"0\.000 Å apart")


def test_the_shortest_real_bond_is_kept():
    hydrogen = Atoms("H2", positions=[[0, 0, 0], [0.6, 0, 0]], cell=np.eye(3) * 4, pbc=True)
    assert GraphBuilder()(hydrogen).num_nodes == 2


@pytest.mark.parametrize("edge", [0.3, 50.0, 0.0])
def test_an_impossible_volume_is_refused(edge):
    refused(Atoms("H", cell=np.eye(3) * edge, pbc=True), "volume", "per atom is not a crystal")


@pytest.mark.parametrize(
    "cell",
    [
        np.diag([1e-5, 1e5, 10.0]),
        np.array([[3.0, 0, 0], [3e4, 3.0, 0], [0, 3e4, 3.0]]),
        np.array([[2.0, 0, 0], [2e6, 2.0, 0], [0, 0, 2.0]]),
    ],
    ids=["flat", "skewed", "needle"],
)
@pytest.mark.usefixtures("way")
def test_a_cell_that_would_need_too_many_images_is_refused_before_the_search(cell, monkeypatch):
    # 4.7 GB and 17 s without a limit. The search itself must not be reached.
    monkeypatch.setattr("cgnn.graph.search.find_points_in_spheres", lambda **_: pytest.fail("searched"))
    refused(Atoms("Cu", cell=cell, pbc=True), "cell_shape", "flat or skewed")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused(value):
    atoms = bulk("NaCl", "rocksalt", a=5.64)
    atoms.positions[1, 2] = value
    refused(atoms, "not_finite", "not a finite number")
    cell = np.eye(3) * 4
    cell[0, 1] = value
    broken = Atoms("Cu", pbc=True)
    broken.cell[:] = cell
    refused(broken, "not_finite", "not a finite number")


@pytest.mark.usefixtures("way")
def test_positions_too_many_cells_away_are_refused():
    atoms = Atoms("CsCl", positions=[[0, 0, 0], [2 + 4.0 * 40_000, 2, 2]], cell=np.eye(3) * 4, pbc=True)
    refused(atoms, "cell_shape", "too many cells away")


def test_an_unknown_strategy_is_refused_with_the_nearest_spelling():
    with pytest.raises(ConfigError, match="did you mean 'nearest'"):
        GraphBuilder(GraphConfig(neighbors="neares"))


# The field check


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda arrays: arrays.pop("reach"), "without field 'reach'"),
        (lambda arrays: arrays.update(pos=arrays["pos"][:-1]), "'pos' has shape"),
        (lambda arrays: arrays.update(lattice=arrays["lattice"][0]), "'lattice' has shape"),
        (lambda arrays: arrays.update(edge_shift=arrays["edge_shift"][:-1]), "'edge_shift' has shape"),
        (lambda arrays: arrays.update(source=arrays["source"] + 1), "'source' points outside"),
        (lambda arrays: arrays.update(target=arrays["target"] - 1), "'target' points outside"),
        (lambda arrays: arrays.update(target=arrays["target"][::-1]), "'target' is not sorted"),
        (lambda arrays: arrays.update(pos=arrays["pos"] * np.nan), "not finite"),
    ],
)
def test_validate_names_what_is_wrong(change, match):
    arrays = GraphBuilder().arrays(rock_salt())
    change(arrays)
    with pytest.raises(DataError, match=match):
        validate(arrays)


# The fingerprint


CHANGED = {
    "neighbors": "shells",
    "k": 13,
    "reach": 1.26,
    "cutoff": 10.5,
    "tolerance": 0.011,
    "max_atoms": 9_999,
    "max_edges": 1_999_999,
}


def test_the_fingerprint_changes_with_each_setting():
    assert set(CHANGED) == set(GraphConfig.model_fields)
    keys = [fingerprint(GraphConfig(**{name: value})) for name, value in CHANGED.items()]
    assert len({fingerprint(GraphConfig()), *keys}) == 1 + len(CHANGED)


def test_the_fingerprint_changes_with_the_schema(monkeypatch):
    before = fingerprint(GraphConfig())
    monkeypatch.setattr("cgnn.graph.build.SCHEMA", -1)
    assert fingerprint(GraphConfig()) != before


def test_the_fingerprint_is_stable():
    # Prepared graphs of all users become stale with it. Regenerate with
    # python -c "from cgnn.graph import *; from cgnn.config import *; print(fingerprint(GraphConfig()))"
    key = fingerprint(GraphConfig())
    assert key == "fc923ffcc564046a4f4b9495ce10f2bef247e211d9020c2965739afaaadba95b"
    code = "from cgnn.graph import fingerprint; from cgnn.config import GraphConfig; print(fingerprint(GraphConfig()))"
    fresh = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert fresh.stdout.strip() == key
