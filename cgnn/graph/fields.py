"""What a graph holds: the field table, the graph itself, and its check."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch_geometric.data import Data

from cgnn.errors import DataError

Arrays = dict[str, NDArray[Any]]
Level = Literal["crystal", "atom", "edge"]


@dataclass(frozen=True)
class Field:
    """One field of a graph.

    Args:
        level: What one entry belongs to.
        shape: Shape of one entry.
        stored: dtype on disk.
        used: dtype in a batch.
    """

    level: Level
    shape: tuple[int, ...]
    stored: str
    used: torch.dtype


FIELDS: dict[str, Field] = {
    "z": Field("atom", (), "uint8", torch.int64),
    "pos": Field("atom", (3,), "float64", torch.float64),
    "reach": Field("atom", (), "float64", torch.float64),
    "lattice": Field("crystal", (3, 3), "float64", torch.float64),
    "source": Field("edge", (), "int32", torch.int64),
    "target": Field("edge", (), "int32", torch.int64),
    "edge_shift": Field("edge", (3,), "int16", torch.float64),
}
"""``source`` and ``target`` are the two rows of a graph's ``edge_index``; atoms count from 0 in each crystal."""


class CrystalGraph(Data):  # type: ignore[misc]
    """A crystal as PyG ``Data``; for fields, shapes and units see ``CONVENTIONS.md``."""

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> CrystalGraph:
        """Return the graph of one crystal from its stored fields."""
        tensors = {name: torch.as_tensor(np.asarray(arrays[name]), dtype=field.used) for name, field in FIELDS.items()}
        edge_index = torch.stack([tensors.pop("source"), tensors.pop("target")])
        return cls(edge_index=edge_index, num_nodes=len(tensors["z"]), **tensors)

    def edge_vectors(self) -> torch.Tensor:
        """Return the vectors from target to source atom, (E, 3) in Å."""
        source, target = self.edge_index
        shift = self.edge_shift @ self.lattice[0]
        return self.pos[source] + shift - self.pos[target]


def vectors(batch: Any) -> torch.Tensor:
    """Return the vectors from target to source atom of a batch's edges (E, 3), Å."""
    source, target = batch.edge_index
    lattice = batch.lattice.index_select(0, batch.batch).index_select(0, target)
    shift = (batch.edge_shift[:, None, :] @ lattice)[:, 0]
    return batch.pos.index_select(0, source) + shift - batch.pos.index_select(0, target)


def distances(batch: Any) -> torch.Tensor:
    """Return the lengths of a batch's edges (E,), Å, differentiable in positions and lattice."""
    return vectors(batch).norm(dim=1)


def validate(arrays: Arrays) -> None:
    """Check the fields of one crystal: present, right shapes, indices inside, edges sorted by target.

    Raises:
        DataError: Names the field and what is wrong with it.
    """
    missing = sorted(set(FIELDS) - set(arrays))
    if missing:
        raise DataError(f"graph without field {missing[0]!r}")
    counts = {"atom": len(arrays["z"]), "edge": len(arrays["source"]), "crystal": 1}
    for name, field in FIELDS.items():
        expected = (counts[field.level], *field.shape)
        if arrays[name].shape != expected:
            raise DataError(f"graph field {name!r} has shape {arrays[name].shape}, expected {expected}")
    for name in ("source", "target"):
        if counts["edge"] and not 0 <= arrays[name].min() <= arrays[name].max() < counts["atom"]:
            raise DataError(f"graph field {name!r} points outside the crystal")
    if np.any(np.diff(arrays["target"]) < 0):
        raise DataError("graph field 'target' is not sorted")
    if not np.isfinite(arrays["pos"]).all() or not np.isfinite(arrays["lattice"]).all():
        raise DataError("graph with positions or a lattice that are not finite")
