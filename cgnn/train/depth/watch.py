"""A training whose layers are measured after every epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from torch import Tensor

from cgnn.data.dataset import CrystalDataset, by_edges
from cgnn.data.prototype import inequivalent_sites
from cgnn.files import write_bytes
from cgnn.model import CrystalGNN
from cgnn.model.depth import LayerWatch, smoothness
from cgnn.train.method import Indices, Method, Step
from cgnn.train.ways.noisy import Around

LAYERS_FILE = "layers.jsonl"
"""A row per epoch: ``epoch``, and by name the value of each layer; the measures begin with the embedding."""
Row = dict[str, Any]


def measurable(dataset: CrystalDataset, indices: Indices, most: int) -> Indices:
    """Return crystals with at least two inequivalent sites, at most so many, the same at every call.

    Args:
        dataset: The crystals.
        indices: Those that may be chosen.
        most: How many at most.
    """
    found: list[int] = []
    for index in np.random.default_rng(4).permutation(indices).tolist():
        if inequivalent_sites(dataset.store.graph(int(dataset.rows[index]))) > 1:
            found.append(index)
        if len(found) == most:
            break
    return np.array(sorted(found), dtype=np.int64)


class WatchedLayers(Around):
    """Measures the layers of a network while it learns; what is learned stays the same to the last bit.

    In the first step of each epoch the gradient and the update of each layer are noted, at its end the smoothness
    of the network that predicts. The rows lie in `LAYERS_FILE`, and what was noted of an epoch that is taken up in its
    middle is found there; only one that was interrupted between its first and its second step has no gradients.

    Args:
        way: The way of learning.
        dataset: The crystals.
        crystals: On which the layers are measured.
        folder: Run folder.
    """

    def __init__(self, way: Method, dataset: CrystalDataset, crystals: Indices, folder: Path) -> None:
        super().__init__(way)
        self.dataset, self.crystals, self.path = dataset, crystals, folder / LAYERS_FILE
        self._epoch = self._step = -1
        self._watch: LayerWatch | None = None
        self._steps: Row = {}

    def draw(self, indices: Indices, epoch: int, step: int) -> Indices:
        """Note where training stands; the step before has moved the weights."""
        self._end_step()
        if step == 0 or epoch != self._epoch:
            self._steps = {} if step == 0 else self._noted(epoch)
        self._epoch, self._step = epoch, step
        return super().draw(indices, epoch, step)

    def loss(self, step: Step) -> Tensor:
        """Return the loss; in the first step of an epoch, watch what becomes of it."""
        if self._step == 0:
            self._watch = LayerWatch(step.model)
            self._watch.begin()
        return super().loss(step)

    def validate(self, model: CrystalGNN, batches: Iterable[Any]) -> dict[str, float] | None:
        """Measure the network that predicts, and leave the row of the epoch."""
        self._end_step()
        device = next(model.parameters()).device
        found = smoothness(
            model, (self.dataset.batch(part).to(device) for part in by_edges(self.dataset, self.crystals))
        )
        self._write({name: each.mean(1).tolist() for name, each in found.items()} | self._steps)
        return super().validate(model, batches)

    def _end_step(self) -> None:
        if self._watch is not None:
            layers = self._watch.end()
            self._steps = {name: [layer[name] for layer in layers] for name in ("gradient", "update")}
            self._watch = None
            self._write(self._steps)

    def _write(self, values: Row) -> None:
        """Leave what is known of the epoch, after the rows of those before it."""
        rows = [row for row in read_layers(self.path) if row["epoch"] <= self._epoch]
        rows.append({"epoch": self._epoch + 1, **values})
        write_bytes(self.path, b"".join(orjson.dumps(row) + b"\n" for row in rows))

    def _noted(self, epoch: int) -> Row:
        """Return the gradients and updates of an epoch that another process has begun."""
        found = [row for row in read_layers(self.path) if row["epoch"] == epoch + 1]
        return {name: row[name] for row in found for name in ("gradient", "update") if name in row}


def read_layers(path: Path) -> list[Row]:
    """Return the rows of a `LAYERS_FILE`; none where there is no file."""
    return [orjson.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


def watching(dataset: CrystalDataset, crystals: Indices, folder: Path) -> Callable[[Method], Method]:
    """Return what puts a `WatchedLayers` around a way of learning."""
    return lambda way: WatchedLayers(way, dataset, crystals, folder)
