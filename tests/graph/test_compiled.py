"""The compiled neighbours against those in numpy: the same edges in the same order, the same bits of distances."""

import gzip
import threading
from typing import Any

import numpy as np
import orjson
import pytest
from ase import Atoms
from ase.build import bulk
from crystals import crystal

from cgnn.config import GraphConfig
from cgnn.errors import CrystalError
from cgnn.graph.neighbors import NEIGHBORS, REFERENCE
from cgnn.kernels import load
from cgnn.kernels import neighbors as kernel

pytestmark = pytest.mark.skipif(load("neighbors") is None, reason="the library of neighbours was not built")

SETTINGS = {
    "nearest": [{}, {"k": 1, "reach": 1.0}, {"k": 40, "reach": 1.7, "cutoff": 7.0}, {"reach": 1.0, "cutoff": 4.2}],
    "shells": [{}, {"k": 4, "tolerance": 0.5}, {"cutoff": 4.0}],
    "radius": [{"cutoff": 5.0}, {"cutoff": 2.3}],
    "cgcnn": [{}, {"k": 3}, {"cutoff": 4.0}],
}
CASES = [(name, settings) for name, several in SETTINGS.items() for settings in several]


def both(name: str, atoms: Atoms, **settings: Any) -> int:
    """Compare, and return the number of edges."""
    config = GraphConfig(neighbors=name, **settings)
    pos, lattice = atoms.positions, np.array(atoms.cell)
    ours, expected = NEIGHBORS[name](pos, lattice, config), REFERENCE[name](pos, lattice, config).stored()
    for field in ("source", "target", "shift", "distance"):
        assert np.array_equal(getattr(ours, field), getattr(expected, field)), field
    np.testing.assert_allclose(ours.reach, expected.reach, rtol=1e-12)
    return len(ours.source)


@pytest.fixture(scope="module")
def real_crystals(real_data: Any) -> list[Atoms]:
    return [
        crystal(document)
        for document in orjson.loads(gzip.decompress((real_data / "elasticity.json.gz").read_bytes()))[::15]
    ]


@pytest.mark.parametrize("name", SETTINGS)
def test_same_edges_in_real_crystals(name, real_crystals):
    assert len(real_crystals) > 300
    edges = sum(both(name, atoms, **SETTINGS[name][0]) for atoms in real_crystals)
    assert edges >= 12 * sum(map(len, real_crystals))


@pytest.mark.parametrize(("name", "settings"), CASES, ids=str)
def test_same_edges_with_other_settings(name, settings, embedded_documents):
    for document in embedded_documents[::25]:
        both(name, crystal(document), **settings)


def random_atoms(rng: np.random.Generator, count: int, lattice: np.ndarray, spread: float = 1.0) -> Atoms:
    pos = rng.uniform(-spread, 1 + spread, size=(count, 3)) @ lattice
    return Atoms(f"H{count}", positions=pos, cell=lattice, pbc=True)


def hard_cases() -> dict[str, Atoms]:
    rng = np.random.default_rng(7)
    dimer = Atoms("CO", positions=[[0, 0, 0], [1.13, 0, 0]], cell=np.eye(3) * 30, pbc=True)
    slab = Atoms("Cu2", positions=[[0, 0, 0], [1.8, 1.8, 1.8]], cell=np.diag([3.6, 3.6, 60]), pbc=True)
    cluster = bulk("Cu", cubic=True).repeat(3)
    cluster.set_cell(np.eye(3) * 40)
    super_cell = bulk("NaCl", "rocksalt", a=5.64, cubic=True).repeat((5, 5, 3))
    rattled = super_cell.copy()
    rattled.positions += rng.normal(scale=0.1, size=rattled.positions.shape)
    skewed = bulk("NaCl", "rocksalt", a=5.64, cubic=True).repeat((4, 1, 1))
    skewed.set_cell(np.array([[1, 0, 0], [13, 1, 0], [-9, 17, 1]]) @ skewed.cell)
    outside = bulk("ZnS", "zincblende", a=5.41).repeat(2)
    outside.positions += rng.integers(-3000, 3000, size=(16, 3)) @ np.array(outside.cell)
    left = bulk("Ti")
    left.set_cell(np.array([[0, 1, 0], [1, 0, 0], [0, 0, 1]]) @ left.cell)
    on_faces = Atoms("Po4", positions=[[0, 0, 0], [4, 2, 2], [2, 4, 8], [-1e-17, 2, 0]], cell=np.eye(3) * 4, pbc=True)
    return {
        "one atom": bulk("Po", "sc", a=3.0),
        "one atom, primitive": bulk("Cu"),
        "tiny cell": Atoms("H", cell=np.diag([0.9, 0.8, 0.85]), pbc=True),
        "alone": Atoms("Xe", cell=np.eye(3) * 40, pbc=True),
        "neighbours on the cutoff": Atoms("Xe", cell=np.eye(3) * 10, pbc=True),
        "dimer": dimer,
        "slab": slab,
        "cluster": cluster,
        "skewed": skewed,
        "flat": random_atoms(rng, 30, np.diag([40.0, 30.0, 0.9])),
        "needle": random_atoms(rng, 20, np.diag([1.2, 1.3, 300.0])),
        "sheared": random_atoms(rng, 12, np.array([[3.0, 0, 0], [9.5, 5.1, 0], [-7, 11, 6.9]])),
        "left-handed": left,
        "atoms outside": outside,
        "on the faces": on_faces,
        "one spot": Atoms("H3", positions=np.ones((3, 3)), cell=np.eye(3) * 4, pbc=True),
        "600 atoms": super_cell,
        "600 atoms, rattled": rattled,
        "1500 atoms": random_atoms(rng, 1500, np.array([[24.0, 0, 0], [5, 25, 0], [-3, 7, 30]]), spread=0.0),
        "crowded corner": bulk("Cu", cubic=True).repeat(2) + Atoms("He40", positions=rng.uniform(0, 1.5, (40, 3))),
    }


@pytest.mark.parametrize(("name", "settings"), CASES, ids=str)
@pytest.mark.parametrize("case", hard_cases())
def test_same_edges_in_hard_cases(case, name, settings):
    both(name, hard_cases()[case], **settings)


def test_same_edges_in_random_cells(rng):
    edges = 0
    for _ in range(150):
        lattice = rng.normal(size=(3, 3)) * rng.uniform(1.5, 8)
        if abs(np.linalg.det(lattice)) > 4:
            edges += both("nearest", random_atoms(rng, int(rng.integers(1, 20)), lattice))
    assert edges > 10_000


def crowd() -> Atoms:
    grid = 0.6 * np.stack(np.meshgrid(*[np.arange(17)] * 3), axis=-1).reshape(-1, 3)
    return Atoms(f"H{len(grid)}He", positions=[*grid, [30, 30, 30]], cell=np.eye(3) * 42, pbc=True)


REFUSED = {
    "flat": (Atoms("H", cell=np.diag([1e-5, 1e5, 10.0]), pbc=True), {}),
    "skewed": (Atoms("H", cell=[[3.0, 0, 0], [3e4, 3.0, 0], [0, 3e4, 3.0]], pbc=True), {}),
    "crowded": (crowd(), {}),
    "dense": (bulk("Cu", cubic=True).repeat(12), {"k": 100, "cutoff": 20.0, "max_edges": 10}),
    "far": (Atoms("CsCl", positions=[[0, 0, 0], [2 + 4.0 * 40_000, 2, 2]], cell=np.eye(3) * 4, pbc=True), {}),
    "very far": (Atoms("CsCl", positions=[[0, 0, 0], [1e300, 2, 2]], cell=np.eye(3) * 4, pbc=True), {}),
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("case", REFUSED)
def test_both_refuse_the_same_in_the_same_words(case, name):
    atoms, settings = REFUSED[case]
    config = GraphConfig(neighbors=name, **settings)
    said = []
    for table in (NEIGHBORS, REFERENCE):
        with pytest.raises(CrystalError, match=r"flat or skewed|pairs of atoms|too many cells") as caught:
            table[name](atoms.positions, np.array(atoms.cell), config).stored()
        said.append((caught.value.code, caught.value.reason))
    assert said[0] == said[1]


def test_threads_do_not_disturb_each_other(rng):
    atoms = [random_atoms(rng, int(n), np.eye(3) * (12.0 * n) ** (1 / 3)) for n in rng.integers(2, 120, size=40)]
    alone = [NEIGHBORS["nearest"](a.positions, np.array(a.cell), GraphConfig()) for a in atoms]
    failed: list[int] = []

    def again(first: int) -> None:
        for i in [*range(first, 40), *range(first)] * 5:
            found = NEIGHBORS["nearest"](atoms[i].positions, np.array(atoms[i].cell), GraphConfig())
            if not all(np.array_equal(getattr(found, f), getattr(alone[i], f)) for f in ("source", "shift", "reach")):
                failed.append(i)

    threads = [threading.Thread(target=again, args=(first,)) for first in (0, 10, 20, 30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_memory_is_given_back():
    import resource

    atoms = bulk("Cu", cubic=True).repeat(5)
    pos, lattice = atoms.positions, np.array(atoms.cell)

    def several() -> int:
        for _ in range(40):
            NEIGHBORS["nearest"](pos, lattice, GraphConfig())
            with pytest.raises(CrystalError, match="pairs of atoms"):
                NEIGHBORS["radius"](pos, lattice, GraphConfig(cutoff=30.0, max_edges=1))
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    before = several()
    assert several() - before < 2_000  # KiB; one search takes more than 500


def test_without_the_library_nothing_is_found(monkeypatch):
    monkeypatch.setattr(kernel, "_library", lambda: None)
    assert kernel.search(np.zeros((1, 3)), np.eye(3), "nearest", (12, 100), (1.25, 10.0, 0.01)) is None
