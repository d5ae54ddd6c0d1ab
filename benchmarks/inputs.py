"""Crystals for the benchmarks: real ones where they lie, the embedded ones elsewhere."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pymatgen.core import Lattice, Structure
from pymatgen.io.cif import CifWriter

from cgnn.data.records import Record, read

ROOT = Path(__file__).parents[1]
EMBEDDED = ROOT / "data" / "elasticity-emt.json.gz"
SHARED = Path(os.environ.get("CGNN_TEST_DATA") or ROOT.parent / "shared" / "data")
_SIZES = [(1, 1, 1), (2, 1, 1), (2, 2, 1), (2, 2, 2), (4, 2, 2), (4, 4, 2), (4, 4, 4), (5, 5, 5), (6, 6, 5), (10, 6, 5)]
_COLUMNS = ["immutable_id", "nsites", "lattice_vectors", "cartesian_site_positions", "species_at_sites"]


def elastic_export() -> Path:
    """Return an export with bulk moduli to train on."""
    real = SHARED / "elasticity.json.gz"
    return real if real.is_file() else EMBEDDED


def source() -> str:
    """Say which crystals are used."""
    return "Materials Project cells" if _parquet().is_file() else "the embedded crystals"


def table(count: int, largest: int | None = None) -> pa.Table:
    """Return Parquet columns of crystals, drawn at random in a fixed way and repeated under new ids if need be.

    Args:
        count: How many.
        largest: Largest number of atoms.
    """
    whole = pq.read_table(_parquet(), columns=_COLUMNS) if _parquet().is_file() else _embedded_table()
    if largest is not None:
        whole = whole.filter(pc.less_equal(whole["nsites"], largest))
    order = np.random.default_rng(20261121).permutation(len(whole))
    picked = whole.take(np.resize(order, count))
    return picked.set_column(0, "immutable_id", pa.array([f"crystal-{number}" for number in range(count)]))


def structures(count: int) -> list[Structure]:
    """Return pymatgen structures of crystals drawn as by `table`."""
    rows = table(count).to_pylist()
    return [
        Structure(row["lattice_vectors"], row["species_at_sites"], row["cartesian_site_positions"],
                  coords_are_cartesian=True)
        for row in rows
    ]  # fmt: skip


def cif_texts(crystals: list[Structure], symprec: float | None = None) -> list[str]:
    """Return CIF texts as pymatgen writes them, with symmetry operations where a tolerance (Å) is given."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [str(CifWriter(crystal, symprec=symprec)) for crystal in crystals]


def write_cifs(texts: list[str], folder: Path) -> Path:
    """Write CIF files and return their folder."""
    folder.mkdir(parents=True)
    for number, text in enumerate(texts):
        (folder / f"crystal-{number:06d}.cif").write_text(text)
    return folder


def write_parquet(columns: pa.Table, path: Path) -> Path:
    """Write a Parquet file of crystals in row groups of ten thousand and return its path."""
    pq.write_table(columns, path, row_group_size=10_000)
    return path


def supercells(largest: int) -> list[Structure]:
    """Return one crystal in ever larger cells, from 2 to 600 atoms; its atoms stand a little off their ideal places."""
    cell = Structure(Lattice.cubic(4.12), ["Cs", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    cells = [cell * size for size in _SIZES if 2 * int(np.prod(size)) <= largest]
    random = np.random.default_rng(20261121)
    return [
        Structure(cell.lattice, cell.species, cell.cart_coords + random.normal(0, 0.05, (len(cell), 3)),
                  coords_are_cartesian=True)
        for cell in cells
    ]  # fmt: skip


def _parquet() -> Path:
    return SHARED / "synthesizability.parquet"


def _embedded_table() -> pa.Table:
    crystals = [item.structure for item in read(EMBEDDED) if isinstance(item, Record)]
    columns: list[Any] = [
        [f"embedded-{number}" for number in range(len(crystals))],
        [len(crystal) for crystal in crystals],
        [crystal.lattice.matrix.tolist() for crystal in crystals],
        [crystal.cart_coords.tolist() for crystal in crystals],
        [[site.specie.symbol for site in crystal] for crystal in crystals],
    ]
    return pa.table(dict(zip(_COLUMNS, columns, strict=True)))
