"""Features of whole crystals: closed forms, and what must not change them."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, graphene

from cgnn.config import GraphConfig, build
from cgnn.data.dataset import collate
from cgnn.graph import GraphBuilder
from cgnn.model import CrystalGNN
from cgnn.model.descriptors import DESCRIPTORS
from cgnn.model.embed import covalent_radii, electronegativities
from cgnn.train.checkpoint import ModelInfo, load_model, save_model

NACL = bulk("NaCl", "rocksalt", a=5.64)
SHELLS = GraphConfig(neighbors="shells", k=6)


def features(name: str, atoms: Atoms, graph: GraphConfig | None = None) -> np.ndarray:
    return DESCRIPTORS[name]()(collate([GraphBuilder(graph or GraphConfig()).arrays(atoms)])).numpy()[0]


def skewed(atoms: Atoms) -> Atoms:
    """The same crystal in a double cell, other axes, turned, shifted, and in another order."""
    twin = atoms.repeat((2, 1, 1))
    twin.set_cell([twin.cell[0], twin.cell[1] + twin.cell[2], twin.cell[2]])
    twin.rotate(37.0, (1, 2, 3), rotate_cell=True)
    twin.translate((0.3, -0.1, 0.7))
    return twin[np.random.default_rng(5).permutation(len(twin))]


@pytest.mark.parametrize("name", DESCRIPTORS)
def test_the_choice_of_the_cell_changes_nothing(name):
    crystal = bulk("ZnS", "wurtzite", a=3.82, c=6.26)
    np.testing.assert_allclose(features(name, skewed(crystal)), features(name, crystal), atol=1e-5)


@pytest.mark.parametrize("name", DESCRIPTORS)
def test_a_crystal_does_not_see_the_others_of_its_batch(name):
    arrays = [GraphBuilder().arrays(atoms) for atoms in (bulk("Cu"), NACL, bulk("Si"))]
    together = DESCRIPTORS[name]()(collate(arrays))
    alone = torch.cat([DESCRIPTORS[name]()(collate([one])) for one in arrays])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", DESCRIPTORS)
def test_features_are_as_many_as_announced(name):
    assert features(name, NACL).shape == (DESCRIPTORS[name]().outputs,)


def test_environments_of_rock_salt_are_those_of_its_closed_form():
    # only the six nearest neighbours, which lie at half the lattice constant, and all with the same weight
    found = features("environments", NACL, SHELLS).astype(float)
    graph = collate([GraphBuilder(SHELLS).arrays(NACL)])
    assert graph.edge_index.shape[1] == 12
    reach, d = graph.reach.numpy(), 2.82
    sodium, chlorine = covalent_radii()[[11, 17]]
    weight = float(np.mean((1 - (d / reach) ** 4).clip(0) ** 2)) if np.isfinite(reach).all() else 1.0
    nearest, ratio = (d - 2.4) / 0.6, (d / (sodium + chlorine) - 1.0) / 0.15
    polarity = (electronegativities()[17] - electronegativities()[11] - 0.8) / 0.6
    bonds = (6 * weight - 7) / 4
    expected = [nearest, ratio, bonds, polarity]
    volume = 5.64**3 / 8
    packing = (np.log10(np.pi / 6 * d**3 / volume) + 0.35) / 0.15
    density = (np.log10(6 * weight / volume) + 0.4) / 0.25
    whole = [2 - 3, packing, density]
    np.testing.assert_allclose(found, [*expected, 0, 0, 0, 0, *expected, *expected, *whole], atol=2e-5)


def test_an_atom_without_neighbours_has_features():
    lonely = Atoms("Ar", cell=[30, 30, 30], pbc=True)
    graph = collate([GraphBuilder(GraphConfig(neighbors="radius", cutoff=5.0)).arrays(lonely)])
    assert graph.edge_index.shape[1] == 0
    for name in DESCRIPTORS:
        assert DESCRIPTORS[name]()(graph).isfinite().all(), name


def arrangement(atoms: Atoms, k: int) -> dict[str, float]:
    """Mean over the atoms, and within elements, of what `Arrangements` tells of bonds, in its own units."""
    descriptor = DESCRIPTORS["arrangements"]()
    found = np.sinh(features("arrangements", atoms, GraphConfig(neighbors="shells", k=k)).astype(float))
    found = found * descriptor.get_buffer("scale").numpy() + descriptor.get_buffer("shift").numpy()
    names = ["asymmetry", "direction", "volume", "spread", "like", "valence", "nearest_like", "nearest_similar"]
    return dict(zip(names, found[:8], strict=True)) | {"within": float(np.abs(found[42:]).max())}


def test_arrangements_of_known_crystals_are_those_of_their_closed_forms():
    salt = arrangement(NACL, 6)
    assert salt["asymmetry"] == pytest.approx(0, abs=2e-3)
    assert (salt["direction"], salt["volume"]) == pytest.approx((1 / 3, 1), abs=1e-5)
    assert (salt["spread"], salt["like"], salt["within"]) == pytest.approx((0, 0, 0), abs=2e-3)
    assert salt["nearest_like"] == pytest.approx(3)  # no neighbour of the same element is in the graph
    sheet = graphene(vacuum=8)
    sheet.pbc = True
    layer = arrangement(sheet, 3)
    assert (layer["direction"], layer["volume"]) == pytest.approx((1 / 2, 0), abs=1e-5)
    assert layer["asymmetry"] == pytest.approx(0, abs=2e-3)
    chain = arrangement(Atoms("C", cell=[1.3, 9, 9], pbc=True), 2)
    assert (chain["direction"], chain["volume"], chain["like"]) == pytest.approx((1, 0, 1), abs=1e-5)
    radius = covalent_radii()[6]
    assert chain["nearest_like"] == pytest.approx(1.3 / (2 * radius), abs=1e-5)
    end = arrangement(Atoms("H2", positions=[[0, 0, 0], [0, 0, 0.8]], cell=[9, 9, 9], pbc=True), 1)
    assert end["asymmetry"] == pytest.approx(1, abs=1e-4)


def test_arrangements_tell_atoms_of_one_element_apart():
    moved = NACL.repeat((2, 1, 1))
    moved.positions[0, 0] += 0.3
    assert arrangement(NACL.repeat((2, 1, 1)), 6)["within"] < 1e-4 < 1e-2 < arrangement(moved, 6)["within"]


def test_stoichiometry_of_alumina():
    alumina = Atoms("Al4O6", positions=np.random.default_rng(0).uniform(0, 5, (10, 3)), cell=[5, 5, 5], pbc=True)
    expected = [np.log10(5) - 0.8, np.log10(3) - 0.5, 2 - 3, 0.4 / 0.2 - 1, 0.6 / 0.2 - 2.5]
    np.testing.assert_allclose(features("stoichiometry", alumina), expected, atol=1e-6)


@pytest.mark.parametrize("name", ["environments", "arrangements"])
def test_descriptors_do_not_jump_where_a_neighbour_leaves_the_graph(name):
    def at(stretch: float) -> np.ndarray:
        atoms = bulk("Cu", "sc", a=3.0)
        atoms.set_cell(atoms.cell * [1, 1, stretch], scale_atoms=True)
        return features(name, atoms, GraphConfig(neighbors="radius", cutoff=3.6))

    steps = np.diff([at(stretch) for stretch in np.linspace(1.1999, 1.2001, 21)], axis=0)
    assert np.abs(steps).max() < 1e-3  # the neighbours along c leave at 1.2


def test_arrangements_have_slopes_everywhere():
    graph = collate([GraphBuilder().arrays(NACL)])
    graph.pos.requires_grad_(True)
    DESCRIPTORS["arrangements"]()(graph).sum().backward()
    assert graph.pos.grad.isfinite().all()


def test_a_network_with_all_descriptors_is_stored_and_read(tmp_path):
    settings = {"targets": [{"name": "hardness"}], "model": {"width": 8, "depth": 1, "descriptors": [*DESCRIPTORS]}}
    config = build(settings)
    network = CrystalGNN(config.model, config.targets).eval()
    save_model(tmp_path / "model.safetensors", [network], ModelInfo(config=config, elements=(11, 17)))
    (read,) = load_model(tmp_path / "model.safetensors").members
    graph = collate([GraphBuilder().arrays(NACL)])
    assert torch.equal(read(graph)["hardness"], network(graph)["hardness"])
