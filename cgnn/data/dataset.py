"""Crystals with labels, and batches of them by index arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch_geometric.data import Batch, Data

from cgnn.data.labels import Labels, read_labels
from cgnn.data.records import SetAside
from cgnn.data.split import CrystalSummary
from cgnn.data.store import GraphStore
from cgnn.errors import DataError
from cgnn.graph.fields import FIELDS, Arrays, CrystalGraph
from cgnn.targets import Target

Ints = NDArray[np.int64]


class CrystalDataset:
    """Prepared graphs with the labels of some targets.

    A crystal without any label, or with one that is not of its target's kind, is set aside.

    Args:
        store: Prepared graphs.
        targets: Which labels to read.

    Raises:
        DataError: A target's column does not exist, or no crystal has a usable label.
    """

    def __init__(self, store: GraphStore, targets: Sequence[Target]) -> None:
        self.store = store
        self.targets = tuple(targets)
        self.labels: Labels = read_labels(store, self.targets)
        self.rows: Ints = self.labels.rows
        self.ids = [self.labels.ids[row] for row in self.rows]

    @property
    def set_aside(self) -> list[SetAside]:
        """Crystals that were not usable, from reading to labels."""
        return [*self.store.set_aside, *self.labels.set_aside]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> CrystalGraph:
        row = int(self.rows[index])
        stored = self.store.graph(row)
        # copied: a tensor on the read-only map would end the process when somebody writes to it
        graph = CrystalGraph.from_arrays({name: values.copy() for name, values in stored.items()})
        for target in self.targets:
            graph[target.field] = torch.from_numpy(self._labels(target, np.array([row])))
        return graph

    def indices(self, ids: Sequence[str]) -> Ints:
        """Return the positions of ids in this data set, in their order.

        Raises:
            DataError: An id is not in the data set.
        """
        position = {material_id: index for index, material_id in enumerate(self.ids)}
        missing = [material_id for material_id in ids if material_id not in position]
        if missing:
            raise DataError(f"{len(missing)} ids of the split are not in the data, such as {missing[0]!r}")
        return np.array([position[material_id] for material_id in ids], dtype=np.int64)

    def batch(self, indices: NDArray[np.int64] | Sequence[int]) -> Batch:
        """Return crystals as one PyG ``Batch``, cut from the packed arrays without a loop over crystals."""
        rows = self.rows[np.asarray(indices, dtype=np.int64)]
        arrays = self.store.arrays
        picked = {level: _spans(arrays[f"{level}_ptr"], rows) for level in ("atom", "edge")}
        fields = {
            name: arrays[name][rows if field.level == "crystal" else picked[field.level][0]]
            for name, field in FIELDS.items()
        }
        batch = join(fields, picked["atom"][1], picked["edge"][1])
        for target in self.targets:
            batch[target.field] = torch.from_numpy(self._labels(target, rows))
        return batch

    def label(self, target: Target, indices: NDArray[np.int64] | None = None) -> NDArray[np.float64]:
        """Return the labels of crystals (or, for an atom-level target, of their atoms), ``nan`` = unknown."""
        rows = self.rows if indices is None else self.rows[indices]
        return self._labels(target, rows)

    def sizes(self) -> tuple[Ints, Ints]:
        """Return the number of atoms and of edges of each crystal."""
        atoms, edges = (np.diff(self.store.arrays[f"{level}_ptr"])[self.rows] for level in ("atom", "edge"))
        return atoms, edges

    def elements(self, indices: NDArray[np.int64]) -> set[int]:
        """Return the atomic numbers that occur in some crystals."""
        atoms, _ = _spans(self.store.arrays["atom_ptr"], self.rows[indices])
        return {int(z) for z in np.unique(self.store.arrays["z"][atoms])}

    def summaries(self) -> list[CrystalSummary]:
        """Return what a split needs to know of each crystal."""
        return [self._summary(int(row)) for row in self.rows]

    def _labels(self, target: Target, rows: Ints) -> NDArray[np.float64]:
        values = self.labels.values[target.name]
        if target.level == "crystal":
            return values[rows]
        return values[_spans(self.store.arrays["atom_ptr"], rows)[0]]

    def _summary(self, row: int) -> CrystalSummary:
        from pymatgen.core import Element

        graph = self.store.graph(row)
        z, counts = np.unique(graph["z"], return_counts=True)
        volume = abs(np.linalg.det(graph["lattice"][0])) / len(graph["z"])
        return CrystalSummary(
            material_id=self.labels.ids[row],
            composition={Element.from_Z(int(n)).symbol: int(c) for n, c in zip(z, counts, strict=True)},
            volume_per_atom=float(volume),
            shells=_shells(graph),
        )


def _shells(graph: Arrays) -> tuple[float, ...]:
    """Return distances that are equal in every description of a crystal: mean over atoms and over edges."""
    vectors = graph["pos"][graph["source"]] + graph["edge_shift"] @ graph["lattice"][0] - graph["pos"][graph["target"]]
    distance = np.linalg.norm(vectors, axis=1)
    if not len(distance):
        return (0.0, 0.0)
    nearest = np.full(len(graph["z"]), np.inf)
    np.minimum.at(nearest, graph["target"], distance)
    return (float(nearest[np.isfinite(nearest)].mean()), float(distance.min()))


def join(fields: Arrays, atoms: Ints, edges: Ints) -> Batch:
    """Return one PyG ``Batch`` of crystals whose fields stand one after another.

    Args:
        fields: Stored fields; ``source`` and ``target`` count atoms from 0 in each crystal.
        atoms: Number of atoms of each crystal (B,).
        edges: Number of edges of each crystal (B,).
    """
    ptr = np.concatenate([[0], np.cumsum(atoms)])
    offset = np.repeat(ptr[:-1], edges)
    edge_index = np.stack([fields["source"] + offset, fields["target"] + offset])
    tensors: dict[str, Any] = {
        name: torch.as_tensor(fields[name], dtype=field.used)
        for name, field in FIELDS.items()
        if name not in ("source", "target")
    }
    batch = Batch(
        _base_cls=Data,
        edge_index=torch.from_numpy(edge_index),
        batch=torch.from_numpy(np.repeat(np.arange(len(atoms)), atoms)),
        ptr=torch.from_numpy(ptr),
        **tensors,
    )
    batch._num_graphs = len(atoms)
    return batch


EDGES_PER_BATCH = 40_000
"""Edges of a batch in evaluation: its memory and time follow them, not the number of crystals."""


def by_edges(dataset: CrystalDataset, indices: Ints, limit: int = EDGES_PER_BATCH) -> list[Ints]:
    """Cut indices, in their order, into parts of about as many edges as the limit."""
    edges = dataset.sizes()[1][indices]
    cuts = np.flatnonzero(np.diff(np.cumsum(edges) // limit)) + 1
    return np.split(indices, cuts)


def collate(graphs: Sequence[Arrays]) -> Batch:
    """Return one PyG ``Batch`` of single graphs, such as those of a stream."""
    fields = {name: np.concatenate([graph[name] for graph in graphs]) for name in FIELDS}
    atoms = np.array([len(graph["z"]) for graph in graphs])
    return join(fields, atoms, np.array([len(graph["source"]) for graph in graphs]))


def _spans(pointers: Ints, rows: Ints) -> tuple[Ints, Ints]:
    """Return the positions of the entries of some crystals, one crystal after another, and their counts."""
    starts = pointers[rows]
    counts = pointers[rows + 1] - starts
    shift = starts - (np.cumsum(counts) - counts)
    return np.arange(counts.sum()) + np.repeat(shift, counts), counts
