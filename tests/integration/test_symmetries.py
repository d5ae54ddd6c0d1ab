"""Predictions are the same in every description of a crystal (PROMISES.md, D3).

The network is randomly initialised, its running statistics are filled from real crystals, and all settings are
the defaults; the property is untrained moduli in GPa behind a log10, so a relative difference is one of GPa.
"""

import copy
import gzip
from collections.abc import Callable
from typing import Any

import numpy as np
import orjson
import pytest
import spglib
import torch
from ase import Atoms
from ase.build import make_supercell
from ase.geometry import wrap_positions
from pymatgen.io.ase import AseAtomsAdaptor
from pymatgen.io.cif import CifWriter

from cgnn.config import GraphConfig, ModelConfig
from cgnn.data.dataset import collate
from cgnn.data.structures import structure_from_text
from cgnn.graph import NEIGHBORS, GraphBuilder
from cgnn.model import CrystalGNN
from cgnn.targets import Target

Change = Callable[[Atoms, np.random.Generator], Atoms]

SETTINGS = {
    "nearest": GraphConfig(),
    "shells": GraphConfig(neighbors="shells"),
    "radius": GraphConfig(neighbors="radius", cutoff=5.0),
    "cgcnn": GraphConfig(neighbors="cgcnn"),
}
INVARIANT = [name for name in SETTINGS if name != "cgcnn"]
DTYPES = {torch.float32: 1e-5, torch.float64: 1e-10}


def crystal(document: dict[str, Any]) -> Atoms:
    sites = document["structure"]["sites"]
    return Atoms(
        [site["species"][0]["element"] for site in sites],
        scaled_positions=[site["abc"] for site in sites],
        cell=document["structure"]["lattice"]["matrix"],
        pbc=True,
    )


# Changes of the description. What they do to the distances is rounding alone.


def rotated(atoms: Atoms, rng: np.random.Generator) -> Atoms:
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    q *= np.sign(np.diag(r))
    return turned(atoms, q * np.linalg.det(q))


def reflected(atoms: Atoms, rng: np.random.Generator) -> Atoms:
    normal = rng.normal(size=3)
    return turned(atoms, np.eye(3) - 2 * np.outer(normal, normal) / (normal @ normal))


def turned(atoms: Atoms, matrix: np.ndarray) -> Atoms:
    return Atoms(atoms.numbers, positions=atoms.positions @ matrix.T, cell=atoms.cell @ matrix.T, pbc=True)


def translated(atoms: Atoms, rng: np.random.Generator) -> Atoms:
    moved = atoms.copy()
    moved.positions += rng.normal(scale=3.0, size=3)
    return moved


def wrapped(atoms: Atoms, rng: np.random.Generator) -> Atoms:
    moved = translated(atoms, rng)
    moved.positions = wrap_positions(moved.positions, moved.cell)
    return moved


def scattered(atoms: Atoms, rng: np.random.Generator) -> Atoms:
    moved = atoms.copy()
    moved.positions += rng.integers(-3, 4, size=(len(atoms), 3)) @ atoms.cell
    return moved


def permuted(atoms: Atoms, rng: np.random.Generator) -> Atoms:
    return atoms[rng.permutation(len(atoms))]


def doubled(atoms: Atoms, rng: np.random.Generator) -> Atoms:
    return atoms.repeat((2, 1, 1))


def doubled_thrice(atoms: Atoms, rng: np.random.Generator) -> Atoms:
    return atoms.repeat((2, 2, 2))


def with_cell(atoms: Atoms, matrix: np.ndarray) -> Atoms:
    """The same atoms in the cell ``matrix @ cell``, for a matrix of integers with determinant one."""
    matrix = np.rint(matrix)
    assert round(abs(np.linalg.det(matrix))) == 1
    return Atoms(atoms.numbers, positions=atoms.positions, cell=matrix @ atoms.cell, pbc=True)


def sheared(atoms: Atoms, rng: np.random.Generator) -> Atoms:
    upper, lower = np.triu(rng.integers(-1, 2, (3, 3)), 1), np.tril(rng.integers(-1, 2, (3, 3)), -1)
    return with_cell(atoms, (np.eye(3) + upper) @ (np.eye(3) + lower))


def left_handed(atoms: Atoms, rng: np.random.Generator) -> Atoms:
    return with_cell(atoms, np.eye(3)[[1, 0, 2]])


def niggli(atoms: Atoms, rng: np.random.Generator) -> Atoms:
    sheared_first = sheared(atoms, rng)
    reduced = spglib.niggli_reduce(np.array(sheared_first.cell), eps=1e-5)
    return with_cell(sheared_first, reduced @ np.linalg.inv(sheared_first.cell))


def conventional(atoms: Atoms, rng: np.random.Generator) -> Atoms:
    """The conventional cell, where the given one is primitive, by whole lattice vectors of the given one."""
    matrix = np.linalg.inv(spglib.get_symmetry_dataset(as_tuple(atoms), symprec=1e-4).transformation_matrix).T
    if np.abs(matrix - np.rint(matrix)).max() > 1e-6:
        return atoms  # the given cell holds the primitive one several times
    return make_supercell(atoms, np.rint(matrix), tol=1e-7)


def as_tuple(atoms: Atoms) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return np.array(atoms.cell), atoms.get_scaled_positions(), atoms.numbers


EXACT: dict[str, Change] = {
    "rotation": rotated,
    "reflection": reflected,
    "translation": translated,
    "wrapping": wrapped,
    "other images": scattered,
    "permutation": permuted,
    "2x1x1": doubled,
    "2x2x2": doubled_thrice,
    "sheared cell": sheared,
    "left-handed cell": left_handed,
    "Niggli cell": niggli,
    "conventional cell": conventional,
}


# Changes that move atoms a little.


def primitive(atoms: Atoms, rng: np.random.Generator) -> Atoms:
    """The primitive cell of a supercell; spglib takes positions that agree within 1e-6 Å for equal."""
    cell, fractional, numbers = spglib.standardize_cell(
        as_tuple(conventional(atoms, rng).repeat((1, 1, 2))), to_primitive=True, no_idealize=True, symprec=1e-6
    )
    found = Atoms(numbers, scaled_positions=fractional, cell=cell, pbc=True)
    assert len(found) <= len(atoms)
    return found


def through_cif(atoms: Atoms, rng: np.random.Generator) -> Atoms:
    """Written by pymatgen with 10 digits (lengths, angles, fractions), read by our reader."""
    text = str(CifWriter(AseAtomsAdaptor.get_structure(atoms), significant_figures=10))
    return AseAtomsAdaptor.get_atoms(structure_from_text(text))


def jittered(atoms: Atoms, rng: np.random.Generator) -> Atoms:
    moved = atoms.copy()
    moved.positions += rng.uniform(-1e-8, 1e-8, size=(len(atoms), 3))
    return moved


PERTURBING: dict[str, tuple[Change, float]] = {
    "primitive cell": (primitive, 1e-6),
    "CIF": (through_cif, 1e-6),
    "1e-8 Å jitter": (jittered, 1e-6),
}


@pytest.fixture(scope="module")
def crystals(request, real_or_embedded) -> list[Atoms]:
    if real_or_embedded == "embedded":
        documents = request.getfixturevalue("embedded_documents")
        return [crystal(document) for document in documents[:: len(documents) // 40][:40]]
    path = request.getfixturevalue("real_data") / "elasticity.json.gz"
    documents = orjson.loads(gzip.decompress(path.read_bytes()))
    return [crystal(document) for document in documents if document["nsites"] <= 8][::13][:240]


@pytest.fixture(scope="module", params=["embedded", "real"])
def real_or_embedded(request) -> str:
    return request.param


class Predictor:
    """One random network in both precisions; its running statistics come from the crystals themselves."""

    def __init__(self, crystals: list[Atoms], settings: GraphConfig) -> None:
        self.builder = GraphBuilder(settings)
        target = Target(name="modulus", transform="log10", unit="GPa")
        with torch.random.fork_rng():
            torch.manual_seed(20261121)
            network = CrystalGNN(ModelConfig(), [target])
        network.head("modulus").fit_scaling(np.array([30.0, 100.0, 300.0]))
        graphs = [self.builder.arrays(atoms) for atoms in crystals]
        with torch.no_grad():
            for _ in range(3):
                for start in range(0, len(graphs), 10):
                    network.train()(collate(graphs[start : start + 10]))
        self.networks = {dtype: copy.deepcopy(network).to(dtype).eval() for dtype in DTYPES}
        self.before = self(crystals)

    def __call__(self, crystals: list[Atoms]) -> dict[torch.dtype, np.ndarray]:
        return self.predict([self.builder.arrays(atoms) for atoms in crystals])

    @torch.no_grad()
    def predict(self, graphs: list[dict[str, np.ndarray]]) -> dict[torch.dtype, np.ndarray]:
        batches = [collate(graphs[start : start + 40]) for start in range(0, len(graphs), 40)]
        return {
            dtype: np.concatenate([network.decode(network(batch))["modulus"].numpy() for batch in batches])
            for dtype, network in self.networks.items()
        }


@pytest.fixture(scope="module")
def predictors(crystals) -> dict[str, Predictor]:
    return {name: Predictor(crystals, settings) for name, settings in SETTINGS.items()}


def test_changes(predictors, crystals, rng):
    import time
    from collections import defaultdict
    for name, change in (EXACT | {k: v[0] for k, v in PERTURBING.items()}).items():
        t=time.time()
        changed = [change(atoms, rng) for atoms in crystals]
        t1=time.time()-t
        out=[]
        for s, p in predictors.items():
            t=time.time()
            after = p(changed)
            for dt in DTYPES:
                out.append(f"{np.abs(after[dt]/p.before[dt]-1).max():.1e}/{np.abs(np.log10(after[dt]/p.before[dt])).max()/np.log10(p.before[dt]).std():.1e}")
            out.append(f"{time.time()-t:.1f}s")
        print(f"{name:18s} {t1:.1f}s", *out)
    print({s:(p.before[torch.float64].mean(), p.before[torch.float64].std()) for s,p in predictors.items()})
