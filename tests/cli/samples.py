"""Good and broken documents and tables for the tests of the command line."""

from __future__ import annotations

import copy
import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pymatgen.core import Structure

Document = dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What a user sees of a command."""

    code: int
    out: str
    err: str


Run = Callable[..., Outcome]


def structure(document: Document) -> Structure:
    return Structure.from_dict(document["structure"])


def changed(documents: list[Document], changes: dict[int, Callable[[Document], None]]) -> list[Document]:
    """Return copies of which some were changed."""
    copies = copy.deepcopy(documents)
    for row, change in changes.items():
        change(copies[row])
    return copies


def overlap(document: Document) -> None:
    document["structure"]["sites"].append(copy.deepcopy(document["structure"]["sites"][0]))


def half_occupied(document: Document) -> None:
    document["structure"]["sites"][0]["species"] = [{"element": "Cu", "occu": 0.5}, {"element": "Au", "occu": 0.5}]


def soft_label(document: Document) -> None:
    document["bulk_modulus"] = {"vrh": "soft"}


def uranium(document: Document) -> None:
    for site in document["structure"]["sites"]:
        site["species"], site["label"] = [{"element": "U", "occu": 1}], "U"


def unlabelled(document: Document) -> None:
    del document["bulk_modulus"], document["shear_modulus"]


def labels(document: Document) -> list[float]:
    return [document["bulk_modulus"]["vrh"], document["shear_modulus"]["vrh"]]


def write_csv(path: Path, rows: list[tuple[str, str, list[float]]]) -> None:
    with open(path, "w", newline="") as handle:
        table = csv.writer(handle)
        table.writerow(["material_id", "cif", "bulk_modulus.vrh", "shear_modulus.vrh"])
        table.writerows([name, cif, *values] for name, cif, values in rows)


def read_table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def write_parquet(path: Path, documents: list[Document]) -> None:
    """Write crystals in the columns of LeMaterial and OPTIMADE."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    crystals = [structure(document) for document in documents]
    columns = {
        "immutable_id": [document["material_id"] for document in documents],
        "lattice_vectors": [crystal.lattice.matrix.tolist() for crystal in crystals],
        "cartesian_site_positions": [crystal.cart_coords.tolist() for crystal in crystals],
        "species_at_sites": [[site.specie.symbol for site in crystal] for crystal in crystals],
        "bulk_modulus.vrh": [labels(document)[0] for document in documents],
        "shear_modulus.vrh": [labels(document)[1] for document in documents],
    }
    pq.write_table(pa.table(columns), path)
