"""From a stored model and crystals to predictions in physical units."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from cgnn.data.dataset import EDGES_PER_BATCH, collate
from cgnn.data.labels import label_of
from cgnn.data.records import Item, Record, SetAside, from_structures, read, without_duplicates
from cgnn.data.store import build_graphs
from cgnn.data.tables import TableWriter, write_set_aside
from cgnn.errors import CheckpointError, ConfigError, DataError
from cgnn.graph.build import GraphBuilder
from cgnn.graph.fields import Arrays
from cgnn.model import CrystalGNN
from cgnn.train.checkpoint import MODEL_FILE, ModelInfo, load_model
from cgnn.train.metrics import Baseline, evaluate

if TYPE_CHECKING:
    import pandas as pd


@dataclass
class Predictions:
    """Predictions of several crystals, in the order in which they were given.

    Args:
        ids: Their ids (n,).
        columns: Column name -> values (n,); for atom-level targets a list of arrays (N,).
        units: Column name -> unit.
        flags: What to know about each crystal before believing its row, ``""`` for nothing (n,).
        set_aside: Crystals that can't be predicted, and why.
    """

    ids: list[str] = field(default_factory=list)
    columns: dict[str, Any] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)
    flags: list[str] = field(default_factory=list)
    set_aside: list[SetAside] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, column: str) -> Any:
        return self.columns[column]

    def table(self) -> dict[str, Any]:
        """Return the columns of a table: ``material_id``, the predictions, ``flags``."""
        return {"material_id": self.ids, **self.columns, "flags": self.flags}

    def flagged(self) -> dict[str, list[str]]:
        """Return each flag with the ids of the crystals that have it."""
        found: dict[str, list[str]] = {}
        for material_id, flag in zip(self.ids, self.flags, strict=True):
            if flag:
                found.setdefault(flag, []).append(material_id)
        return found

    def to_frame(self) -> pd.DataFrame:
        """Return a table with a row per crystal; ``attrs["units"]`` holds the units."""
        import pandas as pd

        frame = pd.DataFrame(self.table())
        frame.attrs["units"] = dict(self.units)
        return frame


@dataclass(frozen=True)
class Evaluation:
    """Scores on crystals with labels.

    Args:
        metrics: Target -> score -> value, physical units, beside the training mean's.
        predictions: One row per scored crystal.
        truth: Target -> labels, as the columns of ``predictions``.
    """

    metrics: dict[str, dict[str, float | int]]
    predictions: Predictions
    truth: dict[str, Any]


class Predictor:
    """A stored model, ready to predict.

    Crystals become graphs with the settings the model was trained with; there is no other way.

    Args:
        model: The network.
        info: What travels with it.
        device: ``auto``, ``cpu`` or ``cuda``.

    Example:
        >>> predictor = Predictor.load("runs/elasticity")  # doctest: +SKIP
        >>> predictor.predict([structure]).to_frame()  # doctest: +SKIP
    """

    def __init__(self, model: CrystalGNN, info: ModelInfo, device: str = "auto") -> None:
        self.info = info
        self.device = _device(device)
        self.model = model.to(self.device).eval()
        self.builder = GraphBuilder(info.config.graph)

    @classmethod
    def load(cls, path: str | Path, device: str = "auto") -> Predictor:
        """Read a model: a run folder, its ``best`` folder, or a model file.

        Raises:
            CheckpointError: There is no model, or it is damaged.
        """
        path = Path(path)
        places = [path, path / MODEL_FILE, path / "best" / MODEL_FILE]
        found = next((place for place in places if place.is_file()), None)
        if found is None:
            raise CheckpointError(f"{path}: no model found (expected a run folder with best/{MODEL_FILE})")
        return cls(*load_model(found), device=device)

    @property
    def units(self) -> dict[str, str]:
        """Target name -> physical unit."""
        return {target.name: target.unit for target in self.model.targets}

    def predict(self, crystals: Any, ids: Sequence[str] | None = None) -> Predictions:
        """Predict crystals.

        Args:
            crystals: pymatgen ``Structure`` or ASE ``Atoms``, one or many (list, Series), or the path of a
                file or folder.
            ids: Their ids; by default ``crystal-0``, ... (not for files, which have their own).

        Returns:
            One row per crystal that can be predicted, in their order; the others are in ``set_aside``.
        """
        if isinstance(crystals, str | Path):
            items: Iterable[Item] = without_duplicates(read(crystals))
        else:
            items = from_structures(crystals, ids)
        return _joined(self.stream(items), self.units)

    def predict_structure(self, crystal: Any) -> dict[str, Any]:
        """Return the predictions of one crystal by name.

        Raises:
            DataError: The crystal can't be predicted; says why.
        """
        result = self.predict([crystal])
        if result.set_aside:
            raise DataError(result.set_aside[0].reason)
        return {name: values[0] for name, values in result.columns.items()}

    def stream(self, items: Iterable[Item]) -> Iterator[Predictions]:
        """Yield predictions in pieces, in the order of the items; memory does not grow with their number."""
        for piece, _ in self._pieces(items):
            yield piece

    def write(self, items: Iterable[Item], path: str | Path) -> tuple[int, list[SetAside], dict[str, list[str]]]:
        """Predict a stream of crystals into a CSV or Parquet file.

        Crystals that were set aside are listed in ``<stem>.set_aside.csv`` beside it.

        Returns:
            Number of rows, the crystals set aside, and each flag with the ids of its crystals.
        """
        path = Path(path)
        rows, set_aside, flags = 0, [], dict[str, list[str]]()
        with TableWriter(path, self.units) as table:
            for piece in self.stream(items):
                set_aside += piece.set_aside
                for flag, ids in piece.flagged().items():
                    flags.setdefault(flag, []).extend(ids)
                if len(piece):
                    table.add(piece.table())
                    rows += len(piece)
            _note(set_aside, path.with_name(f"{path.stem}.set_aside.csv"))
            if not rows:
                raise DataError(_nothing(set_aside))
        return rows, set_aside, flags

    def evaluate(self, items: Iterable[Item]) -> Evaluation:
        """Score the predictions of crystals with labels; those without any are set aside.

        Raises:
            DataError: No crystal has a label.
        """
        targets = self.model.targets
        pieces: list[Predictions] = []
        truth: dict[str, list[NDArray[np.float64]]] = {target.name: [] for target in targets}
        for piece, records in self._pieces(self._labelled(items)):
            pieces.append(piece)
            for record in records:
                for target in targets:
                    truth[target.name].append(label_of(target, record.values, len(record.structure)))
        result = _joined(iter(pieces), self.units)
        if not len(result):
            raise DataError(_nothing(result.set_aside))
        labels = {name: np.concatenate(values) for name, values in truth.items()}
        baselines = {name: Baseline.from_dict(value) for name, value in self.info.baselines.items()}
        scores = evaluate(targets, labels, _flat(self.model, result), baselines)
        columns = {t.name: truth[t.name] if t.level == "atom" else labels[t.name] for t in targets}
        return Evaluation(scores, result, columns)

    def _labelled(self, items: Iterable[Item]) -> Iterator[Item]:
        for item in items:
            if isinstance(item, SetAside):
                yield item
                continue
            try:
                labels = [label_of(t, item.values, len(item.structure)) for t in self.model.targets]
            except DataError as error:
                yield SetAside(item.material_id, item.source, "label", "bad_label", str(error))
                continue
            if all(np.isnan(label).all() for label in labels):
                wanted = ", ".join(target.source for target in self.model.targets)
                yield SetAside(item.material_id, item.source, "label", "no_label", f"no value of {wanted}")
            else:
                yield item

    def _pieces(self, items: Iterable[Item]) -> Iterator[tuple[Predictions, list[Record]]]:
        records: list[Record] = []
        graphs: list[Arrays] = []
        aside: list[SetAside] = []
        edges = 0
        for item, arrays in build_graphs(items, self.builder):
            if isinstance(item, SetAside):
                aside.append(item)
                continue
            records.append(item)
            graphs.append(arrays)
            edges += len(arrays["source"]) + len(arrays["z"])
            if edges >= EDGES_PER_BATCH:
                yield self._piece(records, graphs, aside), records
                records, graphs, aside, edges = [], [], [], 0
        if records or aside:
            yield self._piece(records, graphs, aside), records

    def _piece(self, records: Sequence[Record], graphs: Sequence[Arrays], aside: Sequence[SetAside]) -> Predictions:
        piece = Predictions(units=self.units, set_aside=list(aside))
        if not graphs:
            return piece
        decoded = self._decoded(graphs)
        cuts = np.cumsum([len(graph["z"]) for graph in graphs])[:-1]
        for target in self.model.targets:
            columns = self.model.head(target.name).columns(decoded[target.name])
            if target.level == "atom":
                columns = {name: np.split(values, cuts) for name, values in columns.items()}  # type: ignore[misc]
            piece.columns |= columns
        piece.ids = [record.material_id for record in records]
        piece.flags = [self._flag(graph) for graph in graphs]
        return piece

    @torch.no_grad()
    def _decoded(self, graphs: Sequence[Arrays]) -> dict[str, NDArray[np.float64]]:
        torch.set_flush_denormal(True)
        raw = self.model(collate(graphs).to(self.device))
        return {name: values.cpu().numpy() for name, values in self.model.decode(raw).items()}

    def _flag(self, graph: Arrays) -> str:
        from pymatgen.core import Element

        unseen = sorted({int(z) for z in graph["z"]} - set(self.info.elements))
        names = " ".join(Element.from_Z(z).symbol for z in unseen)
        return f"elements not in training: {names}" if names else ""


def _flat(model: CrystalGNN, result: Predictions) -> dict[str, NDArray[Any]]:
    """Return predictions as the metrics want them: flat over atoms, probabilities for classes."""
    flat = {}
    for target in model.targets:
        names = [target.name]
        if target.task == "multiclass":
            names = [f"{target.name}_p_{label}" for label in target.classes]
        columns = [np.concatenate(result[n]) if target.level == "atom" else result[n] for n in names]
        flat[target.name] = np.stack(columns, axis=1) if target.task == "multiclass" else columns[0]
    return flat


def _joined(pieces: Iterator[Predictions], units: Mapping[str, str]) -> Predictions:
    parts = list(pieces)
    full = [part for part in parts if len(part)]
    columns: dict[str, Any] = {}
    for name in full[0].columns if full else ():
        values = [part.columns[name] for part in full]
        columns[name] = list(chain(*values)) if isinstance(values[0], list) else np.concatenate(values)
    return Predictions(
        ids=[entry for part in full for entry in part.ids],
        columns=columns,
        units=dict(units),
        flags=[entry for part in full for entry in part.flags],
        set_aside=[entry for part in parts for entry in part.set_aside],
    )


def _note(set_aside: Sequence[SetAside], path: Path) -> None:
    if set_aside:
        write_set_aside(path, set_aside)
    else:
        path.unlink(missing_ok=True)  # of an earlier call


def _nothing(set_aside: Sequence[SetAside]) -> str:
    if not set_aside:
        return "no crystals were given"
    first = set_aside[0]
    name = first.material_id or first.source
    if len(set_aside) == 1:
        return f"{name} can't be used: {first.reason}"
    return f"none of the {len(set_aside)} crystals can be used; the first, {name}: {first.reason}"


def _device(name: str) -> torch.device:
    if name not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device {name!r}: expected auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device 'cuda' was asked for, but torch sees no CUDA device")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
