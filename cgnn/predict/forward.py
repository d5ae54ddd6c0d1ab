"""What is done with a block of crystals, in this process or a worker: read, build graphs, run the network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cgnn.config import GraphConfig, ModelConfig
from cgnn.data.dataset import EDGES_PER_BATCH
from cgnn.data.items import Block, Record, SetAside
from cgnn.data.labels import label_of
from cgnn.data.packed import join
from cgnn.data.store.chunks import build_each
from cgnn.errors import CrystalError, DataError
from cgnn.graph.build import GraphBuilder
from cgnn.graph.fields import FIELDS, Arrays
from cgnn.model import CrystalGNN
from cgnn.model.members import combined, features_of
from cgnn.targets import Target
from cgnn.train.trust.confidence import Confidence

Labels = dict[str, NDArray[np.float64]]
_Arrays = dict[str, NDArray[np.float64]]

FAR = "far from training (novelty above 1)"
"""Flag of a crystal that lies beyond 99 % of the training crystals' own distances."""
SEPARATOR = "; "
"""Between several flags of one crystal."""


class Row(NamedTuple):
    """One crystal of the input.

    Args:
        material_id: Its id.
        source: Where it came from.
        digest: Digest of its record; empty where none could be read.
        aside: Why it can't be predicted, if so.
    """

    material_id: str
    source: str
    digest: bytes
    aside: SetAside | None


@dataclass
class Graphs:
    """Crystals of a block, ready for the network.

    Args:
        rows: All of them, in their order.
        fields: Stored fields of the n that can be predicted, one crystal after another.
        atoms: Number of atoms of each (n,).
        edges: Number of edges of each (n,).
        truth: Their labels, where these were asked for (n).
    """

    rows: list[Row] = field(default_factory=list)
    fields: list[Arrays] = field(default_factory=list)
    atoms: list[int] = field(default_factory=list)
    edges: list[int] = field(default_factory=list)
    truth: list[Labels] = field(default_factory=list)

    @property
    def size(self) -> int:
        """What the network's work on them grows with: edges, and atoms where there are none."""
        return sum(self.edges) + sum(self.atoms)

    def packed(self) -> Graphs:
        """Return the same with one array for each field: cheaper to send."""
        if len(self.fields) < 2:
            return self
        whole = {name: np.concatenate([graph[name] for graph in self.fields]) for name in FIELDS}
        return Graphs(self.rows, [whole], self.atoms, self.edges, self.truth)

    def __iadd__(self, other: Graphs) -> Graphs:
        for name in ("rows", "fields", "atoms", "edges", "truth"):
            getattr(self, name).extend(getattr(other, name))
        return self


@dataclass
class Piece:
    """Predictions of some crystals of a block.

    Args:
        rows: All of them, in their order.
        columns: Columns of the n that could be predicted.
        flags: What to know of each of these, ``""`` for nothing (n,).
        truth: Their labels, where these were asked for (n).
        learned: Name of a regression target -> value and spread on its learned scale, arrays (n,); for atom-level
            targets lists of arrays, as in the columns.
    """

    rows: list[Row]
    columns: dict[str, Any]
    flags: list[str]
    truth: list[Labels]
    learned: dict[str, dict[str, Any]] = field(default_factory=dict)


class Building:
    """Reads a block and builds its graphs.

    Args:
        settings: How neighbours are found.
        targets: Whose labels are wanted; crystals without any are set aside.
    """

    def __init__(self, settings: GraphConfig, targets: Sequence[Target] = ()) -> None:
        self.settings = settings
        self.targets = tuple(targets)

    def __call__(self, block: Block) -> list[Graphs]:
        """Return the graphs of a block."""
        return [graphs.packed() for graphs in self.parts(block, EDGES_PER_BATCH)]

    def parts(self, block: Block, limit: int) -> Iterator[Graphs]:
        """Yield the graphs of a block in parts of about a number of edges; more are never held."""
        builder = GraphBuilder(self.settings)
        graphs = Graphs()
        size = 0
        for item in block.items():
            if isinstance(item, SetAside):
                graphs.rows.append(Row(item.material_id, item.source, b"", item))
                continue
            built = self._built(item, builder)
            graphs += built
            size += built.size
            if size >= limit:
                yield graphs
                graphs, size = Graphs(), 0
        if graphs.rows:
            yield graphs

    def _built(self, record: Record, builder: GraphBuilder) -> Graphs:
        labels = self._labels(record) if self.targets else {}
        if isinstance(labels, SetAside):
            return Graphs([Row(record.material_id, record.source, record.digest, labels)])
        ((_, graph),) = build_each([record], builder)
        if isinstance(graph, CrystalError):
            aside = SetAside(record.material_id, record.source, "graph", graph.code, graph.reason)
            return Graphs([Row(record.material_id, record.source, record.digest, aside)])
        row = Row(record.material_id, record.source, record.digest, None)
        truth = [labels] if self.targets else []
        return Graphs([row], [graph], [len(graph["z"])], [len(graph["source"])], truth)

    def _labels(self, record: Record) -> Labels | SetAside:
        try:
            labels = {t.name: label_of(t, record.values, len(record.crystal)) for t in self.targets}
        except DataError as error:
            return SetAside(record.material_id, record.source, "label", "bad_label", str(error))
        if all(np.isnan(label).all() for label in labels.values()):
            wanted = ", ".join(target.source for target in self.targets)
            return SetAside(record.material_id, record.source, "label", "no_label", f"no value of {wanted}")
        return labels


class Network:
    """One or several networks ready to predict; what is sent to a worker is their weights.

    It uses one processor: where there are more, workers fill them, and the digits are the same everywhere.

    Args:
        members: The networks; a prediction is their mean.
        elements: Atomic numbers that occurred in training.
        confidence: What is known of their errors.
        device: Where they run.
    """

    def __init__(
        self,
        members: Sequence[CrystalGNN],
        elements: Sequence[int],
        confidence: Confidence,
        device: torch.device | None = None,
    ) -> None:
        self._members = tuple(members)
        self._elements = tuple(elements)
        self._confidence = confidence
        self._device = device or torch.device("cpu")

    def __reduce__(self) -> tuple[Any, ...]:
        weights = [
            (member.config, {name: tensor.detach().cpu().numpy() for name, tensor in member.state_dict().items()})
            for member in self._members
        ]
        return _revived, (self._members[0].targets, weights, self._elements, self._confidence)

    @cached_property
    def _folded(self) -> list[CrystalGNN]:
        return [member.folded().to(self._device) for member in self._members]

    @cached_property
    def _is_known(self) -> NDArray[np.bool_]:
        known = np.zeros(256, dtype=bool)
        known[list(self._elements)] = True
        return known

    def predict(self, graphs: Graphs) -> Piece:
        """Return the predictions of crystals."""
        piece = Piece(graphs.rows, {}, [], graphs.truth)
        if not graphs.fields:
            return piece
        (fields,) = graphs.packed().fields
        atoms = np.array(graphs.atoms)
        decoded, learned, spread, features = self._decoded(fields, atoms, np.array(graphs.edges))
        cuts = np.cumsum(atoms)[:-1]
        first = self._members[0]
        for target in first.targets:
            columns: Mapping[str, Any] = first.head(target.name).columns(decoded[target.name])
            spreads: Mapping[str, Any] = learned.get(target.name, {})
            columns = {**columns, **self._confidence.columns(target, spreads)}
            if target.name in spread:
                columns[f"{target.name}_spread"] = spread[target.name]
            if target.level == "atom":
                columns, spreads = (
                    {name: np.split(values, cuts) for name, values in table.items()} for table in (columns, spreads)
                )
            piece.columns |= columns
            piece.learned |= {target.name: dict(spreads)} if spreads else {}
        piece.flags = self._flags(fields["z"], atoms)
        self._judge_distance(piece, features)
        return piece

    def _judge_distance(self, piece: Piece, features: NDArray[np.float64]) -> None:
        """Add how far crystals are from training, where the model knows."""
        if self._confidence.novelty is None:
            return
        distance = self._confidence.novelty.relative(features)
        piece.columns["novelty"] = distance
        for row in np.flatnonzero(distance > 1).tolist():
            piece.flags[row] = SEPARATOR.join(filter(None, (piece.flags[row], FAR)))

    @torch.no_grad()
    def _decoded(
        self, fields: Arrays, atoms: NDArray[np.int64], edges: NDArray[np.int64]
    ) -> tuple[_Arrays, dict[str, _Arrays], _Arrays, NDArray[np.float64]]:
        """Return physical values by target, what `Combined` tells besides (as arrays), and the features (n, F)."""
        torch.set_flush_denormal(True)
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            tensors = {name: torch.from_numpy(values).to(self._device) for name, values in fields.items()}
            batch = join(tensors, atoms, edges)
            seen = features_of(self._folded, batch)
            found = combined(self._folded, [m.outputs(*each) for m, each in zip(self._folded, seen, strict=True)])
            learned = {name: each.arrays() for name, each in found.learned.items()}
            features = seen[0][1].double().cpu().numpy()
            return _on_host(found.decoded), learned, _on_host(found.spread), features
        finally:
            torch.set_num_threads(before)

    def _flags(self, z: NDArray[np.uint8], atoms: NDArray[np.int64]) -> list[str]:
        flags = [""] * len(atoms)
        is_strange = ~self._is_known[z]
        if is_strange.any():
            crystal = np.repeat(np.arange(len(atoms)), atoms)[is_strange]
            for row in np.unique(crystal).tolist():
                flags[row] = _unseen(np.unique(z[is_strange][crystal == row]).tolist())
        return flags


class Forward:
    """Reads a block, builds its graphs and runs the network over them: all that a worker does.

    Args:
        building: From the block to graphs.
        network: From graphs to predictions.
    """

    def __init__(self, building: Building, network: Network) -> None:
        self.building = building
        self.network = network

    def __call__(self, block: Block) -> list[Piece]:
        """Return the predictions of a block, in pieces."""
        return [self.network.predict(graphs) for graphs in self.building.parts(block, EDGES_PER_BATCH)]


def _on_host(tensors: Mapping[str, Tensor]) -> _Arrays:
    return {name: values.cpu().numpy() for name, values in tensors.items()}


def _unseen(numbers: Sequence[int]) -> str:
    from pymatgen.core import Element

    return "elements not in training: " + " ".join(Element.from_Z(z).symbol for z in numbers)


def _revived(
    targets: Sequence[Target],
    weights: Sequence[tuple[ModelConfig, Mapping[str, NDArray[Any]]]],
    elements: Sequence[int],
    confidence: Confidence,
) -> Network:
    members = []
    for config, each in weights:
        with torch.device("meta"):
            member = CrystalGNN(config, targets)
        member.load_state_dict({name: torch.from_numpy(values) for name, values in each.items()}, assign=True)
        members.append(member.eval())
    return Network(members, elements, confidence)
