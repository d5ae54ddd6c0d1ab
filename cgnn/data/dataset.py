"""Crystals with labels, and batches of them by index arithmetic."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch_geometric.data import Batch

from cgnn.config import SplitConfig
from cgnn.data.details import with_details
from cgnn.data.labels import Labels, read_labels
from cgnn.data.packed import CPU, PackedGraphs, join, runs
from cgnn.data.records import SetAside
from cgnn.data.store import GraphStore
from cgnn.data.summary import CrystalSummary
from cgnn.errors import DataError
from cgnn.graph.fields import FIELDS, Arrays, CrystalGraph, distances
from cgnn.targets import Target

Ints = NDArray[np.int64]


class CrystalDataset:
    """Prepared graphs with the labels of some targets.

    A crystal without any label, or with one that is not of its target's kind, is set aside.

    Args:
        store: Prepared graphs.
        targets: Which labels to read.
        keep_unlabelled: Keep crystals without any label, for ways of learning that use them.
        labels: Labels of the store's crystals that were read in another way (`cgnn.train.pu.labels`).

    Raises:
        DataError: A target's column does not exist, or no crystal has a usable label.
    """

    def __init__(
        self,
        store: GraphStore,
        targets: Sequence[Target],
        keep_unlabelled: bool = False,
        labels: Labels | None = None,
    ) -> None:
        self.store = store
        self.targets = tuple(targets)
        found = labels or read_labels(store, self.targets)
        self.labels: Labels = found.with_unlabelled() if keep_unlabelled else found
        self.rows: Ints = self.labels.rows
        self.ids = [self.labels.ids[row] for row in self.rows]
        self._on_device: PackedGraphs | None = None
        self._given: dict[str, Tensor] = {}

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
        batch = (self._on_device or self._on_disk(rows)).batch(rows)
        for target in self.targets:
            batch[target.field] = torch.from_numpy(self._labels(target, rows)).to(batch.z.device)
        for name, values in self._given.items():
            places = torch.as_tensor(np.asarray(indices, dtype=np.int64))
            batch[name] = values.index_select(0, places).to(batch.z.device)
        return batch

    def give(self, name: str, values: Tensor) -> None:
        """Put a field of crystals beside those that are stored, into every batch from now on.

        Args:
            name: Name of the field.
            values: Its values for all crystals of the data set (n, ...).
        """
        if len(values) != len(self):
            raise ValueError(f"{name}: {len(values)} rows for {len(self)} crystals")
        self._given[name] = values

    def to(self, device: torch.device) -> None:
        """Take the graphs to a device, where batches are cut from then on; nothing for the processor itself."""
        if device.type != "cpu":
            self._on_device = self._on_disk(np.arange(len(self.store))).to(device)

    def _on_disk(self, rows: Ints) -> PackedGraphs:
        """Return the stored graphs, of which those of some rows are checked."""
        self.store.verify(rows)
        mapped = self.store.mapped
        return PackedGraphs({name: mapped[name] for name in FIELDS}, self._pointers)

    @property
    def _pointers(self) -> dict[str, Ints]:
        return {level: self.store.arrays[f"{level}_ptr"] for level in ("atom", "edge")}

    def label(self, target: Target, indices: NDArray[np.int64] | None = None) -> NDArray[np.float64]:
        """Return the labels of crystals (or, for an atom-level target, of their atoms), ``nan`` = unknown."""
        rows = self.rows if indices is None else self.rows[indices]
        return self._labels(target, rows)

    def relabelled(self, labels: Mapping[str, NDArray[np.float64]]) -> CrystalDataset:
        """Return the same crystals with other labels.

        Args:
            labels: By target name as `label` gives them for all crystals, ``nan`` = unknown; a target that is not
                named keeps its own.
        """
        twin = copy.copy(self)
        values = {name: column.copy() for name, column in self.labels.values.items()}
        for target in self.targets:
            if target.name in labels:
                places = self.rows if target.level == "crystal" else self._atoms(self.rows)
                values[target.name][places] = labels[target.name]
        twin.labels = replace(self.labels, values=values)
        return twin

    def hidden(self, indices: Ints) -> CrystalDataset:
        """Return the same crystals, those of some indices without labels."""
        is_hidden = np.zeros(len(self), dtype=bool)
        is_hidden[indices] = True
        by_level = {"crystal": is_hidden, "atom": np.repeat(is_hidden, self.sizes()[0])}
        return self.relabelled({t.name: np.where(by_level[t.level], np.nan, self.label(t)) for t in self.targets})

    def sizes(self) -> tuple[Ints, Ints]:
        """Return the number of atoms and of edges of each crystal."""
        atoms, edges = (np.diff(pointers)[self.rows] for pointers in self._pointers.values())
        return atoms, edges

    def elements(self, indices: NDArray[np.int64]) -> set[int]:
        """Return the atomic numbers that occur in some crystals."""
        atoms = self._atoms(self.rows[indices])
        return {int(z) for z in np.unique(self.store.arrays["z"][atoms])}

    def summaries(self, config: SplitConfig | None = None) -> list[CrystalSummary]:
        """Return what a split needs to know of each crystal; all of it where its settings are given.

        Raises:
            DataError: The settings name a column that does not exist.
        """
        parts = np.split(self.rows, range(_SUMMARISED, len(self.rows), _SUMMARISED))
        found = [summary for rows in parts for summary in self._summaries(rows)]
        return found if config is None else with_details(found, config, self.store, self.rows, self.targets)

    def _labels(self, target: Target, rows: Ints) -> NDArray[np.float64]:
        values = self.labels.values[target.name]
        if target.level == "crystal":
            return values[rows]
        return values[self._atoms(rows)]

    def _atoms(self, rows: Ints) -> Ints:
        """Return the positions of the atoms of some crystals."""
        pointers = self._pointers["atom"]
        return runs(pointers[rows], pointers[rows + 1] - pointers[rows], CPU).numpy()

    def _summaries(self, rows: Ints) -> Iterator[CrystalSummary]:
        return summarise(self._on_disk(rows).batch(rows), [self.labels.ids[row] for row in rows.tolist()])


def summarise(batch: Batch, ids: Sequence[str]) -> Iterator[CrystalSummary]:
    """Yield what tells whether two crystals are the same, and what every split needs to know."""
    from pymatgen.core import Element

    crystal = batch.batch.numpy()
    volumes = batch.lattice.det().abs().numpy() / np.bincount(crystal)
    shells = _shells(batch)
    occurring, counts = np.unique(crystal * _ELEMENTS + batch.z.numpy(), return_counts=True)
    compositions: list[dict[str, int]] = [{} for _ in ids]
    for key, count in zip(occurring.tolist(), counts.tolist(), strict=True):
        compositions[key // _ELEMENTS][Element.from_Z(key % _ELEMENTS).symbol] = count
    for place, material_id in enumerate(ids):
        yield CrystalSummary(
            material_id=material_id,
            composition=compositions[place],
            volume_per_atom=float(volumes[place]),
            shells=(float(shells[0][place]), float(shells[1][place])),
        )


_ELEMENTS = 119
_SUMMARISED = 1000
"""Crystals that are summarised at once: what that takes of memory follows their number."""


def _shells(batch: Batch) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return distances that are equal in every description of a crystal (B,), Å; zero for one without edges.

    The mean over atoms of the distance to the nearest neighbour, and the smallest of them.
    """
    crystal, target, distance = batch.batch.numpy(), batch.edge_index[1].numpy(), distances(batch).numpy()
    nearest = np.full(len(crystal), np.inf)
    np.minimum.at(nearest, target, distance)
    has_any = np.isfinite(nearest)
    found = np.bincount(crystal[has_any], minlength=batch.num_graphs)
    mean = np.bincount(crystal[has_any], nearest[has_any], minlength=batch.num_graphs) / np.maximum(found, 1)
    smallest = np.full(batch.num_graphs, np.inf)
    np.minimum.at(smallest, crystal, nearest)
    return mean, np.where(found > 0, smallest, 0.0)


EDGES_PER_BATCH = 40_000
"""Edges of a batch in evaluation: its memory and time follow them, not the number of crystals."""


def by_edges(dataset: CrystalDataset, indices: Ints, limit: int = EDGES_PER_BATCH) -> list[Ints]:
    """Cut indices, in their order, into parts of about as many edges as the limit."""
    edges = dataset.sizes()[1][indices]
    cuts = np.flatnonzero(np.diff(np.cumsum(edges) // limit)) + 1
    return np.split(indices, cuts)


def collate(graphs: Sequence[Arrays]) -> Batch:
    """Return one PyG ``Batch`` of single graphs, such as those of a stream."""
    fields = {name: torch.from_numpy(np.concatenate([graph[name] for graph in graphs])) for name in FIELDS}
    atoms = np.array([len(graph["z"]) for graph in graphs])
    return join(fields, atoms, np.array([len(graph["source"]) for graph in graphs]))
