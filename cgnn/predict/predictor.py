"""A stored model that predicts crystals, few or millions."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cgnn.data.engines import run
from cgnn.data.items import Block, Finished
from cgnn.data.records import Item, SetAside, blocks, from_structures
from cgnn.data.repeats import Repeats
from cgnn.data.tables import TableWriter, write_set_aside
from cgnn.errors import ConfigError, DataError
from cgnn.graph.build import GraphBuilder
from cgnn.model import CrystalGNN
from cgnn.predict.forward import Building, Forward, Graphs, Labels, Network, Piece
from cgnn.predict.predictions import Evaluation, Predictions, joined
from cgnn.targets import Target
from cgnn.train.checkpoint import ModelInfo, load_model
from cgnn.train.metrics import Baseline, evaluate
from cgnn.train.pretrained import model_file

EDGES_ON_DEVICE = 1_000_000
"""Edges that a GPU is given at once."""
_LOOSE = 256
"""So many crystals that are in memory make a block."""

Crystals = Iterable[Item | Block]
"""Crystals one by one, or in blocks that any process can read."""
Counter = Callable[[int], object]
"""Is told how many more crystals are done."""


class Predictor:
    """A stored model, ready to predict.

    Crystals become graphs with the settings the model was trained with; there is no other way.

    Args:
        members: The networks; a prediction is their mean.
        info: What travels with them.
        device: ``auto``, ``cpu`` or ``cuda``.

    Example:
        >>> predictor = Predictor.load("runs/elasticity")  # doctest: +SKIP
        >>> predictor.predict([structure]).to_frame()  # doctest: +SKIP
    """

    def __init__(self, members: Sequence[CrystalGNN], info: ModelInfo, device: str = "auto") -> None:
        self.info = info
        self.device = _device(device)
        self.members = tuple(member.to(self.device).eval() for member in members)
        self.builder = GraphBuilder(info.config.graph)
        self.confidence = info.confidence()

    @classmethod
    def load(cls, path: str | Path, device: str = "auto") -> Predictor:
        """Read a model: a run folder, its ``best`` folder, a model file, or the name of one of the package's own.

        Raises:
            CheckpointError: There is no model, or it is damaged.
        """
        return cls(*load_model(model_file(path)), device=device)

    @property
    def units(self) -> dict[str, str]:
        """Column name -> physical unit."""
        return {target.name: target.unit for target in self.info.config.targets} | self.confidence.units()

    def predict(self, crystals: Any, ids: Sequence[str] | None = None) -> Predictions:
        """Predict crystals.

        Args:
            crystals: pymatgen ``Structure`` or ASE ``Atoms``, one or many (list, Series), or the path of a
                file or folder.
            ids: Their ids; by default ``crystal-0``, ... (not for files, which have their own).

        Returns:
            One row per crystal that can be predicted, in their order; the others are in ``set_aside``. For each
            calibrated target ``<t>``, ``<t>_std`` and the ends of the 90 % interval ``<t>_lower`` and
            ``<t>_upper``; ``novelty`` is the distance from the training crystals, above 1 for what is far.
        """
        given: Crystals = blocks(crystals) if isinstance(crystals, str | Path) else from_structures(crystals, ids)
        return joined(self.stream(given), self.units, self.confidence)

    def predict_structure(self, crystal: Any) -> dict[str, Any]:
        """Return the predictions of one crystal by name.

        Raises:
            DataError: The crystal can't be predicted; says why.
        """
        result = self.predict([crystal])
        if result.set_aside:
            raise DataError(result.set_aside[0].reason)
        return {name: values[0] for name, values in result.columns.items()}

    def stream(self, crystals: Crystals, engine: str = "serial", workers: int = 0) -> Iterator[Predictions]:
        """Yield predictions in pieces, in the order of the crystals; memory does not grow with their number.

        Of the crystals of blocks, those whose id was met before are set aside.

        Args:
            crystals: Crystals, or blocks of them (`cgnn.data.records.blocks`), which go to workers unread.
            engine: An entry of `cgnn.data.engines.choice.ENGINES`. All give the same numbers.
            workers: Their number; 0 means one for each processor.
        """
        for piece, _ in self._pieces(crystals, engine, workers, is_scored=False):
            yield piece

    def write(
        self,
        crystals: Crystals,
        path: str | Path,
        engine: str = "serial",
        workers: int = 0,
        counter: Counter | None = None,
        table_of: Callable[[Predictions], dict[str, Any]] | None = None,
    ) -> tuple[int, list[SetAside], dict[str, list[str]]]:
        """Predict a stream of crystals into a CSV or Parquet file.

        Crystals that were set aside are listed in ``<stem>.set_aside.csv`` beside it.

        Args:
            crystals: As for `stream`.
            path: The file; it appears when all is done.
            engine: As for `stream`.
            workers: As for `stream`.
            counter: Is told how many more crystals are done.
            table_of: Gives the columns of a table without units; by default all that is predicted, with units.

        Returns:
            Number of rows, the crystals set aside, and each flag with the ids of its crystals.
        """
        path = Path(path)
        rows, set_aside, flags = 0, [], dict[str, list[str]]()
        pieces = self._pieces(crystals, engine, workers, is_scored=False)
        units = self.units if table_of is None else {}
        with TableWriter(path, units) as table, closing(pieces):
            for piece, _ in pieces:
                set_aside += piece.set_aside
                for flag, ids in piece.flagged().items():
                    flags.setdefault(flag, []).extend(ids)
                if len(piece):
                    table.add(piece.table() if table_of is None else table_of(piece))
                    rows += len(piece)
                if counter:
                    counter(len(piece) + len(piece.set_aside))
            _note(set_aside, path.with_name(f"{path.stem}.set_aside.csv"))
            if not rows:
                raise DataError(_nothing(set_aside))
        return rows, set_aside, flags

    def evaluate(
        self, crystals: Crystals, engine: str = "serial", workers: int = 0, counter: Counter | None = None
    ) -> Evaluation:
        """Score the predictions of crystals with labels; those without any are set aside.

        The arguments are those of `write`.

        Raises:
            DataError: No crystal has a label.
        """
        targets = self.info.config.targets
        found: list[Predictions] = []
        truth: list[Labels] = []
        with closing(self._pieces(crystals, engine, workers, is_scored=True)) as pieces:
            for piece, labels in pieces:
                found.append(piece)
                truth += labels
                if counter:
                    counter(len(piece) + len(piece.set_aside))
        result = joined(found, self.units, self.confidence)
        if not len(result):
            raise DataError(_nothing(result.set_aside))
        apart = {target.name: [label[target.name] for label in truth] for target in targets}
        labels_ = {name: np.concatenate(values) for name, values in apart.items()}
        baselines = {name: Baseline.from_dict(value) for name, value in self.info.baselines.items()}
        scores = evaluate(targets, labels_, _flat(targets, result), baselines)
        for name, learned in result.flat().items():
            scores[name] |= self.confidence.scores(name, labels_[name], learned)
        columns = {t.name: apart[t.name] if t.level == "atom" else labels_[t.name] for t in targets}
        return Evaluation(scores, result, columns)

    def _pieces(
        self, crystals: Crystals, engine: str, workers: int, is_scored: bool
    ) -> Generator[tuple[Predictions, list[Labels]], None, None]:
        given = iter(crystals)
        first = list(islice(given, 1))
        is_loose = bool(first) and isinstance(first[0], Item)
        source: Any = chain(first, given)
        repeats = None if is_loose else Repeats()
        results = self._results(_in_blocks(source) if is_loose else source, engine, workers, is_scored)
        with closing(results):
            for piece in results:
                yield self._checked(piece, repeats)

    def _results(
        self, source: Iterable[Block], engine: str, workers: int, is_scored: bool
    ) -> Generator[Piece, None, None]:
        """Yield predictions; on a GPU the workers build graphs and this process runs the network."""
        building = Building(self.info.config.graph, self.info.config.targets if is_scored else ())
        network = Network(self.members, self.info.elements, self.confidence, self.device)
        is_here = self.device.type != "cpu"
        function = building if is_here else Forward(building, network)
        with closing(run(engine, function, source, workers)) as results:
            parts = chain.from_iterable(results)
            yield from map(network.predict, _gathered(parts)) if is_here else parts

    def _checked(self, piece: Piece, repeats: Repeats | None) -> tuple[Predictions, list[Labels]]:
        """Return the predictions of a piece without the crystals that repeat an id."""
        aside: list[SetAside] = []
        ids: list[str] = []
        used: list[int] = []
        row = 0
        for material_id, source, digest, why in piece.rows:
            note = (repeats.note(material_id, source, digest) if repeats and digest else None) or why
            if note is None:
                ids.append(material_id)
                used.append(row)
            else:
                aside.append(note)
            row += why is None
        columns, learned, flags, truth = piece.columns, piece.learned, piece.flags, piece.truth
        if len(used) < row:
            columns = _picked_columns(columns, used)
            learned = {name: _picked_columns(spreads, used) for name, spreads in learned.items()}
            flags, truth = _picked(flags, used), _picked(truth, used) if truth else []
        if not ids:
            columns, learned = {}, {}
        return Predictions(ids, columns, self.units, flags, aside, learned, self.confidence), truth


def _picked_columns(columns: dict[str, Any], rows: list[int]) -> dict[str, Any]:
    return {name: _picked(values, rows) for name, values in columns.items()}


def _picked(values: Any, rows: list[int]) -> Any:
    return [values[row] for row in rows] if isinstance(values, list) else values[rows]


def _in_blocks(items: Iterator[Any]) -> Iterator[Block]:
    """Yield crystals that come one by one in blocks."""
    while content := list(islice(items, _LOOSE)):
        yield Finished(content)


def _gathered(parts: Iterable[Graphs]) -> Iterator[Graphs]:
    """Yield parts joined to what is worth a call of a GPU."""
    gathered = Graphs()
    for part in parts:
        gathered += part
        if gathered.size >= EDGES_ON_DEVICE:
            yield gathered
            gathered = Graphs()
    if gathered.rows:
        yield gathered


def _flat(targets: Sequence[Target], result: Predictions) -> dict[str, NDArray[Any]]:
    """Return predictions as the metrics want them: flat over atoms, probabilities for classes."""
    flat = {}
    for target in targets:
        names = [target.name]
        if target.task == "multiclass":
            names = [f"{target.name}_p_{label}" for label in target.classes]
        columns = [np.concatenate(result[n]) if target.level == "atom" else result[n] for n in names]
        flat[target.name] = np.stack(columns, axis=1) if target.task == "multiclass" else columns[0]
    return flat


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
