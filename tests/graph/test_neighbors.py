"""The neighbour search against vesin, and what each strategy keeps."""

from typing import Any

import numpy as np
import pytest
import vesin
from ase import Atoms
from ase.build import bulk
from crystals import crystal
from scipy.optimize import brentq

from cgnn.config import GraphConfig
from cgnn.errors import CrystalError
from cgnn.graph.neighbors import NEIGHBORS, Neighbors, _bounded, within

pytestmark = pytest.mark.usefixtures("way")

ODD_CELLS = {
    "one atom": (np.eye(3) * 2.9, np.zeros((1, 3))),
    "needle": (np.diag([1.5, 1.7, 60.0]), np.array([[0.1, 0.2, 3.0], [0.7, 1.0, 41.0], [0.2, 1.3, 41.9]])),
    "plate": (np.diag([25.0, 22.0, 1.6]), np.array([[0.1, 0.2, 0.3], [3.0, 1.0, 0.7], [24.0, 21.0, 1.5]])),
    "sheared": (
        np.array([[3.0, 0.0, 0.0], [9.5, 3.1, 0.0], [-7.0, 11.0, 2.9]]),
        np.array([[0.1, 0.2, 0.3], [1.4, 1.7, 1.5]]),
    ),
    "left-handed": (np.diag([3.0, -4.0, 5.0]), np.array([[0.1, 0.2, 0.3], [1.4, 1.7, 1.5]])),
    "atoms outside": (
        np.array([[4.0, 0.3, 0.1], [0.5, 4.2, 0.0], [0.2, 0.9, 3.8]]),
        np.array([[-31.0, 55.0, 2.0], [0.3, 0.1, 0.2], [100.0, -77.0, 4.0]]),
    ),
    "on the faces": (
        np.eye(3) * 4.0,
        np.array([[0.0, 0.0, 0.0], [4.0, 2.0, 2.0], [2.0, 4.0, 8.0], [-1e-17, 2.0, 0.0]]),
    ),
}


def pairs(source: Any, target: Any, shift: Any) -> list[tuple[int, ...]]:
    rows = np.column_stack([target, source, np.rint(shift)]).astype(int)
    return sorted(map(tuple, rows.tolist()))


def by_vesin(pos: np.ndarray, lattice: np.ndarray, cutoff: float) -> tuple[list[tuple[int, ...]], np.ndarray]:
    """Return pairs as (target, source, shift of the source) and their sorted distances, all below the cutoff."""
    search = vesin.NeighborList(cutoff=cutoff, full_list=True, n_threads=1)
    target, source, shift, distance = search.compute(pos, lattice, periodic=True, quantities="ijSd")
    return pairs(source, target, shift), np.sort(distance)


def check_against_vesin(pos: np.ndarray, lattice: np.ndarray, cutoff: float) -> int:
    found = NEIGHBORS["radius"](pos, lattice, GraphConfig(cutoff=cutoff))
    expected, distances = by_vesin(pos, lattice, cutoff)
    assert pairs(found.source, found.target, found.shift) == expected
    np.testing.assert_allclose(np.sort(found.distance), distances, rtol=0, atol=1e-10)
    return len(expected)


def random_cell(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    while True:
        lattice = rng.normal(size=(3, 3)) * rng.uniform(1, 8)
        if abs(np.linalg.det(lattice)) > 8:
            return rng.uniform(-2, 3, size=(rng.integers(1, 9), 3)) @ lattice, lattice


@pytest.mark.parametrize("cutoff", [2.2, 4.71, 7.03])
@pytest.mark.parametrize("name", ODD_CELLS)
def test_same_pairs_as_vesin_in_odd_cells(name, cutoff):
    lattice, pos = ODD_CELLS[name]
    check_against_vesin(pos, lattice, cutoff)


def test_same_pairs_as_vesin_in_large_cells(rng):
    for lattice in (np.diag([31.0, 22, 17]), np.array([[25.0, 0, 0], [14, 20, 0], [-9, 8, 26]]), np.diag([90.0, 9, 7])):
        pos = rng.uniform(-1, 2, size=(250, 3)) @ lattice
        assert check_against_vesin(pos, lattice, 5.03) > 2000


def test_same_pairs_as_vesin_in_random_cells(rng):
    assert sum(check_against_vesin(*random_cell(rng), 6.01) for _ in range(100)) > 5000


def test_same_pairs_as_vesin_in_embedded_crystals(embedded_documents):
    # 6.0137 Å: no shell of these crystals lies there within rounding.
    for atoms in map(crystal, embedded_documents[::8]):
        check_against_vesin(atoms.positions, np.array(atoms.cell), 6.0137)


def test_same_pairs_as_vesin_in_real_crystals(real_data):
    for atoms in map(crystal, real_documents(real_data)[::40]):
        check_against_vesin(atoms.positions, np.array(atoms.cell), 5.0137)


def real_documents(folder: Any) -> list[dict[str, Any]]:
    import gzip

    import orjson

    return orjson.loads(gzip.decompress((folder / "elasticity.json.gz").read_bytes()))


def find(neighbors: str, atoms: Atoms, **settings: Any) -> Neighbors:
    return NEIGHBORS[neighbors](atoms.positions, np.array(atoms.cell), GraphConfig(neighbors=neighbors, **settings))


def counts(found: Neighbors, atoms: Atoms) -> list[int]:
    return np.bincount(found.target, minlength=len(atoms)).tolist()


# within


def test_the_cutoff_belongs_to_the_sphere():
    simple_cubic = Atoms("Po", cell=np.eye(3) * 3.0, pbc=True)
    assert len(within(simple_cubic.positions, np.eye(3) * 3.0, 3.0).source) == 6
    assert len(within(simple_cubic.positions, np.eye(3) * 3.0, 2.999).source) == 0


def test_two_atoms_on_one_spot_are_neighbours():
    # So that the overlap is noticed.
    found = within(np.array([[0.5, 0.5, 0.5], [0.5, 0.5, 0.5]]), np.eye(3) * 4, 1.0)
    assert pairs(found.source, found.target, found.shift) == [(0, 1, 0, 0, 0), (1, 0, 0, 0, 0)]
    assert found.distance.tolist() == [0, 0]


@pytest.mark.parametrize(
    "lattice",
    [
        np.diag([1e-5, 1e5, 10.0]),
        np.array([[3.0, 0, 0], [3e4, 3.0, 0], [0, 3e4, 3.0]]),
        np.array([[1.0, 0, 0], [1, 1e-9, 0], [0, 0, 1]]),
    ],
    ids=["flat", "skewed", "nearly no volume"],
)
def test_a_cell_that_needs_too_many_images_is_refused_before_the_search(lattice, monkeypatch):
    monkeypatch.setattr("cgnn.graph.search.find_points_in_spheres", lambda **_: pytest.fail("searched"))
    with pytest.raises(CrystalError, match="flat or skewed") as caught:
        within(np.zeros((1, 3)), lattice, 10.0)
    assert caught.value.code == "cell_shape"


def crowded_corner() -> Atoms:
    """A dense block in a large empty cell: the mean density promises a small search, which would take gigabytes."""
    grid = 0.6 * np.stack(np.meshgrid(*[np.arange(17)] * 3), axis=-1).reshape(-1, 3)
    return Atoms(f"H{len(grid)}He", positions=[*grid, [30, 30, 30]], cell=np.eye(3) * 42, pbc=True)


@pytest.mark.parametrize(
    ("name", "atoms", "settings"),
    [
        ("nearest", crowded_corner(), {}),
        ("shells", crowded_corner(), {}),
        ("cgcnn", crowded_corner(), {}),
        ("radius", bulk("Cu", cubic=True).repeat(12), {"cutoff": 20.0}),
    ],
)
def test_a_search_for_too_many_pairs_is_refused_before_it(name, atoms, settings, monkeypatch):
    found: list[int] = []

    def counted(*words: Any) -> Neighbors:
        found.append(len((pairs := within(*words)).source))
        return pairs

    for room in ("neighbors", "search"):
        monkeypatch.setattr(f"cgnn.graph.{room}.within", counted)
    with pytest.raises(CrystalError, match=r"pairs of atoms lie within .* \(graph.max_edges\)") as caught:
        find(name, atoms, **settings)
    assert caught.value.code == "too_large"
    assert sum(found) < 8_000_000


# nearest


def smooth_step(x: np.ndarray, start: float, stop: float) -> np.ndarray:
    u = np.clip((x - start) / (stop - start), 0, 1)
    return 1 - (10 * u**3 - 15 * u**4 + 6 * u**5)


def brute_radius(atoms: Atoms, k: int, cutoff: float = 10.0) -> np.ndarray:
    """Return the radius that holds k - 1/2 neighbours by the smooth count, from vesin's list and scipy's root."""
    search = vesin.NeighborList(cutoff=cutoff, full_list=True, n_threads=1)
    target, distance = search.compute(atoms.positions, np.array(atoms.cell), periodic=True, quantities="id")
    fading = smooth_step(distance, 0.8 * cutoff, cutoff)

    def radius(atom: int) -> float:
        d, w = distance[target == atom], fading[target == atom]
        if w.sum() <= k - 0.5:
            return np.inf
        return brentq(lambda r: np.sum(w * smooth_step(d / r, 0.9, 1.1)) - (k - 0.5), 0.3, 2 * cutoff, xtol=1e-13)

    return np.array([radius(atom) for atom in range(len(atoms))])


@pytest.mark.parametrize("reach", [1.0, 1.25, 1.6])
@pytest.mark.parametrize("k", [1, 5, 12, 20])
def test_nearest_keeps_all_within_reach_times_the_radius_that_holds_k(k, reach, embedded_documents):
    for atoms in map(crystal, embedded_documents[::60]):
        found = find("nearest", atoms, k=k, reach=reach)
        np.testing.assert_allclose(found.reach, reach * brute_radius(atoms, k), rtol=1e-10)
        everyone = within(atoms.positions, np.array(atoms.cell), 1.001 * found.reach.max())
        inside = everyone.distance < found.reach[everyone.target]
        assert pairs(found.source, found.target, found.shift) == pairs(
            everyone.source[inside], everyone.target[inside], everyone.shift[inside]
        )


def test_the_radius_lies_near_the_kth_distance(embedded_documents):
    for atoms in map(crystal, embedded_documents[::60]):
        found = find("nearest", atoms, k=12, reach=1.0)
        all_pairs = within(atoms.positions, np.array(atoms.cell), 8.0)
        for atom in range(len(atoms)):
            kth = np.sort(all_pairs.distance[all_pairs.target == atom])[11]
            assert kth / 1.1 < found.reach[atom] < kth / 0.9


def uneven() -> list[Atoms]:
    """Crystals whose density says little about the distance of neighbours."""
    molecule = Atoms("H2", positions=[[0, 0, 0], [0.74, 0, 0]], cell=np.eye(3) * 9, pbc=True)
    chain = Atoms("C4", positions=[[0, 0, z] for z in (0, 1.4, 2.8, 4.2)], cell=np.diag([9, 9, 30.0]), pbc=True)
    cluster = bulk("Cu", cubic=True).repeat(2)
    cluster.set_cell(np.eye(3) * 25)
    return [molecule, chain, cluster + Atoms("He", positions=[[17.0, 17.0, 17.0]])]


@pytest.mark.parametrize("atoms", uneven(), ids=lambda atoms: str(atoms.symbols))
def test_nearest_grows_its_search_in_uneven_crystals(atoms):
    found = find("nearest", atoms, k=3, cutoff=14.0)
    far = vesin.NeighborList(cutoff=14.0, full_list=True, n_threads=1)
    target, distance = far.compute(atoms.positions, np.array(atoms.cell), periodic=True, quantities="id")
    wanted = 1.25 * brute_radius(atoms, 3, cutoff=14.0)
    is_plain = wanted < 0.8 * 14.0  # above, the largest cutoff takes over smoothly
    np.testing.assert_allclose(found.reach[is_plain], wanted[is_plain], rtol=1e-10)
    assert np.all(found.reach[~is_plain] <= 14.0)
    # A pair exactly at the reach has weight zero, so rounding may keep it or not.
    limit = found.reach[target]
    assert np.sum(distance < limit - 1e-9) <= len(found.source) <= np.sum(distance < limit + 1e-9)


def test_nearest_is_capped_by_the_cutoff():
    copper = bulk("Cu", a=3.6)  # 12 neighbours at 2.546 Å, 6 at 3.6 Å
    # 12 S(2.546 / r) = 11.5
    radius = brentq(lambda r: 12 * smooth_step(np.array([3.6 / 2**0.5 / r]), 0.9, 1.1)[0] - 11.5, 2.0, 3.5)
    assert find("nearest", copper).reach == pytest.approx(1.25 * radius)
    capped = find("nearest", copper, cutoff=2.6)
    assert capped.reach == pytest.approx([2.6], rel=1e-12)
    assert counts(capped, copper) == [12]


def test_the_largest_cutoff_takes_over_without_a_corner():
    reach = np.linspace(5.0, 15.0, 100_001)
    bounded = _bounded(reach, 10.0)
    assert np.all(bounded[reach <= 8.0] == pytest.approx(reach[reach <= 8.0]))
    assert bounded[reach >= 12.0] == pytest.approx(10.0)
    slopes = np.diff(bounded) / np.diff(reach)
    assert np.abs(np.diff(slopes)).max() < 1e-4  # the slope falls from 1 to 0 over 40,000 of these steps


def test_an_isolated_atom_has_no_neighbours_and_the_cutoff_as_reach():
    for box in (10.5, 40.0):
        alone = Atoms("Xe", cell=np.eye(3) * box, pbc=True)
        for name in NEIGHBORS:
            assert counts(find(name, alone), alone) == [0]
        assert find("nearest", alone).reach.tolist() == [10.0]


def test_fewer_than_k_within_the_cutoff_are_all_kept():
    dimer = Atoms("CO", positions=[[0, 0, 0], [1.13, 0, 0]], cell=np.eye(3) * 30, pbc=True)
    for name in NEIGHBORS:
        found = find(name, dimer)
        assert counts(found, dimer) == [1, 1]
        np.testing.assert_allclose(found.distance, 1.13)
        assert not found.shift.any()


# cgcnn


def brute_kth(atoms: Atoms, k: int) -> np.ndarray:
    """Return the distance of each atom's k-th neighbour, from vesin's list with a generous cutoff."""
    search = vesin.NeighborList(cutoff=14.0, full_list=True, n_threads=1)
    target, distance = search.compute(atoms.positions, np.array(atoms.cell), periodic=True, quantities="id")
    return np.array([np.sort(distance[target == atom])[k - 1] for atom in range(len(atoms))])


def test_cgcnn_keeps_the_k_nearest(embedded_documents):
    for atoms in map(crystal, embedded_documents[::60]):
        for k in (1, 7, 12):
            found = find("cgcnn", atoms, k=k)
            assert counts(found, atoms) == [k] * len(atoms)
            np.testing.assert_allclose(found.distance.reshape(-1, k).max(1), brute_kth(atoms, k), rtol=1e-12)
            assert np.isinf(found.reach).all()


# shells

A = 4.0
# Crystal, k, neighbours in the whole shells that hold k; shells: fcc 12, 6, 24; bcc 8, 6, 12; diamond 4, 12; sc 6, 12.
SHELLS = [
    ("fcc", 1, 12),
    ("fcc", 12, 12),
    ("fcc", 13, 18),
    ("fcc", 20, 42),
    ("bcc", 8, 8),
    ("bcc", 12, 14),
    ("bcc", 15, 26),
    ("diamond", 4, 4),
    ("diamond", 12, 16),
    ("sc", 6, 6),
    ("sc", 12, 18),
]


@pytest.mark.parametrize(("structure", "k", "expected"), SHELLS)
def test_shells_are_whole(structure, k, expected):
    name = {"sc": "Po", "diamond": "Si"}.get(structure, "Cu")
    atoms = bulk(name, structure, a=A)
    for cell in (atoms, atoms.repeat((2, 1, 1)), atoms.repeat((1, 2, 3))):
        found = find("shells", cell, k=k)
        assert counts(found, cell) == [expected] * len(cell)
        assert np.isinf(found.reach).all()


def test_shells_take_what_lies_within_the_tolerance_of_the_kth():
    # Neighbours along x at 3.00, along y at 3.02, along z at 3.04 Å: two each.
    atoms = Atoms("Po", cell=np.diag([3.0, 3.02, 3.04]), pbc=True)
    for k, tolerance, expected in [
        (2, 0.001, 2),
        (2, 0.01, 4),
        (2, 0.02, 6),
        (3, 0.001, 4),
        (3, 0.01, 6),
        (5, 0.001, 6),
    ]:
        assert counts(find("shells", atoms, k=k, tolerance=tolerance), atoms) == [expected]


# radius


def test_radius_keeps_what_is_nearer_than_the_cutoff():
    copper = bulk("Cu", a=3.6)
    assert counts(find("radius", copper, cutoff=2.6), copper) == [12]
    assert counts(find("radius", copper, cutoff=3.61), copper) == [18]
    assert find("radius", copper, cutoff=3.61).reach.tolist() == [3.61]
    simple_cubic = Atoms("Po", cell=np.eye(3) * 3.0, pbc=True)
    assert counts(find("radius", simple_cubic, cutoff=3.0), simple_cubic) == [0]
