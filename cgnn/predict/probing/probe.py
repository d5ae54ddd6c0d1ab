"""How predictions answer to small changes of a crystal: smoothly, or with jumps."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby

import numpy as np
import torch
from numpy.typing import NDArray

from cgnn.config import GraphConfig
from cgnn.data.dataset import EDGES_PER_BATCH, collate
from cgnn.data.records import Record
from cgnn.errors import CrystalError, choose
from cgnn.graph.build import GraphBuilder
from cgnn.graph.crystal import Crystal
from cgnn.graph.fields import Arrays
from cgnn.model import CrystalGNN
from cgnn.predict.probing.paths import PERTURBATIONS, Path
from cgnn.targets import Target
from cgnn.train.metrics import learned_unit

Array = NDArray[np.float64]
AMPLITUDES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
"""Å."""
PLACES = np.linspace(0, AMPLITUDES[-1], 101)
"""Where a path is looked at for jumps, Å."""
_HALVINGS = 24
JUMP = 0.5
"""A step along a path is a jump where so much of it remains when its length is halved 24 times, to 3e-11 Å."""
SMALLEST = 1e-6
"""On the learned scale: what is smaller is rounding of the single precision in which a network predicts."""


class Values:
    """What a model says of crystals on its learned scale, in double precision, so that rounding hides nothing.

    Args:
        members: The networks; the mean of their values counts.
        settings: How neighbours are found.
    """

    def __init__(self, members: Sequence[CrystalGNN], settings: GraphConfig) -> None:
        self.settings = settings
        self._members = [copy.deepcopy(member).cpu().double().eval() for member in members]
        self._builder = GraphBuilder(settings)

    @property
    def targets(self) -> tuple[Target, ...]:
        """What is predicted."""
        return self._members[0].targets

    @torch.no_grad()
    def __call__(self, crystals: Sequence[Crystal]) -> dict[str, Array]:
        """Return by target name the values (n, m) of n crystals with as many atoms each.

        The m values are one number of a regression, the probabilities of classes, and of atom-level targets those of
        all atoms.

        Raises:
            CrystalError: A crystal can't be used.
        """
        graphs = [self._builder.arrays(crystal) for crystal in crystals]
        found: dict[str, list[Array]] = {}
        for part in _parts(graphs):
            for name, values in self._of(part).items():
                found.setdefault(name, []).append(values.reshape(len(part), -1))
        return {name: np.concatenate(values) for name, values in found.items()}

    def _of(self, graphs: list[Arrays]) -> dict[str, Array]:
        batch = collate(graphs)
        raws = [member(batch) for member in self._members]
        values = {}
        for target in self.targets:
            each = []
            for member, raw in zip(self._members, raws, strict=True):
                head = member.head(target.name)
                learned = head.learned(raw[target.name])
                each.append(head.decode(raw[target.name]) if learned is None else learned[0])
            values[target.name] = torch.stack(each).mean(0).numpy()
        return values


def _parts(graphs: Sequence[Arrays]) -> list[list[Arrays]]:
    """Return graphs in groups of about as many edges as a batch may have."""
    before = accumulate((len(graph["source"]) for graph in graphs), initial=0)
    numbered = zip(before, graphs, strict=False)
    return [[graph for _, graph in group] for _, group in groupby(numbered, lambda pair: pair[0] // EDGES_PER_BATCH)]


@dataclass(frozen=True)
class Roughness:
    """The most outstanding step of a scan along a path.

    Args:
        over_median: Largest step of the scan over the median one.
        at: Where the most outstanding one begins, Å.
        jump: What remains of it when its length is halved again and again.
        share: That over the step: all, if it is a jump, and next to nothing, if the path is smooth.
    """

    over_median: float
    at: float
    jump: float
    share: float


def roughness(
    values: Callable[[Sequence[Crystal]], dict[str, Array]], path: Path, places: Array
) -> dict[str, Roughness]:
    """Scan a path and look closely at its most outstanding step; by target name.

    Args:
        values: Whose values.
        path: The path.
        places: Amplitudes, rising, Å.
    """
    scans = values([path(place) for place in places])
    steps = {name: _size(np.diff(scan, axis=0)) for name, scan in scans.items()}
    chosen = {name: _outstanding(sizes) for name, sizes in steps.items()}
    ends = {name: [places[step], places[step + 1]] for name, step in chosen.items()}
    seen = {name: [scans[name][step], scans[name][step + 1]] for name, step in chosen.items()}
    for _ in range(_HALVINGS):
        middles = {name: sum(pair) / 2 for name, pair in ends.items()}
        found = values([path(middle) for middle in middles.values()])
        for row, (name, middle) in enumerate(middles.items()):
            between = found[name][row]
            low, high = seen[name]
            half = int(_size(high - between) > _size(between - low))  # the larger one
            ends[name][1 - half], seen[name][1 - half] = middle, between
    result = {}
    for name, sizes in steps.items():
        jump, step = float(_size(seen[name][1] - seen[name][0])), sizes[chosen[name]]
        share = jump / step if step else 0.0
        result[name] = Roughness(_ratio(sizes.max(), np.median(sizes)), float(ends[name][0]), jump, float(share))
    return result


def _size(change: Array) -> Array:
    """Return the largest change of all values of a target."""
    return np.asarray(np.abs(change).max(axis=-1))


def _outstanding(sizes: Array) -> int:
    """Return the step that is largest beside its neighbours; small ones are not compared with still smaller ones."""
    around = np.maximum(np.append(sizes[1:], 0), np.append(0, sizes[:-1]))
    return int(np.argmax(sizes / np.maximum(np.maximum(around, np.median(sizes)), np.finfo(np.float64).tiny)))


def _ratio(value: float, other: float) -> float:
    return float(value / other) if other else float("nan")


@dataclass(frozen=True)
class Response:
    """How one value of a crystal answers to one change.

    Args:
        material_id: The crystal.
        neighbors: Whose values: the model, or its weights with neighbours found in another way.
        perturbation: Entry of `PERTURBATIONS`.
        target: Name of the target.
        unit: Of its learned scale.
        changes: By which the value changes at each of `AMPLITUDES`, learned scale.
        roughness: What the scan shows.
    """

    material_id: str
    neighbors: str
    perturbation: str
    target: str
    unit: str
    changes: tuple[float, ...]
    roughness: Roughness

    @property
    def is_jump(self) -> bool:
        """Whether the value jumps somewhere on the path."""
        return self.roughness.share > JUMP and self.roughness.jump > SMALLEST


@dataclass(frozen=True)
class Probed:
    """What a probe found.

    Args:
        responses: A row per crystal, way of finding neighbours, change and target.
        failed: Id of a crystal -> why it could not be probed.
    """

    responses: list[Response]
    failed: dict[str, str]


def same_weights(settings: GraphConfig, names: Iterable[str], crystals: Sequence[Crystal]) -> dict[str, GraphConfig]:
    """Return the model's way of finding neighbours, first, and others of about the same size.

    All keep ``k``; the cutoff of ``radius`` is the median reach of the atoms, or the radius that holds k of them.

    Args:
        settings: Those of the model.
        names: Entries of `cgnn.graph.NEIGHBORS`.
        crystals: On which it will be probed.
    """
    found = {settings.neighbors: settings}
    for name in names:
        changes: dict[str, object] = {"neighbors": name}
        if name == "radius" and settings.neighbors != "radius":
            changes["cutoff"] = _median_reach(settings, crystals)
        found.setdefault(name, settings.model_copy(update=changes))
    return found


def _median_reach(settings: GraphConfig, crystals: Sequence[Crystal]) -> float:
    builder = GraphBuilder(settings.model_copy(update={"neighbors": "nearest"}))
    reach = np.concatenate([builder.arrays(crystal)["reach"] for crystal in crystals])
    return float(np.median(reach[np.isfinite(reach)])) if np.isfinite(reach).any() else settings.cutoff


def probe(
    subjects: Mapping[str, Values],
    records: Sequence[Record],
    perturbations: Iterable[str] = tuple(PERTURBATIONS),
    seed: int = 0,
    counter: Callable[[int], object] | None = None,
) -> Probed:
    """Change crystals little by little and see how predictions answer.

    Each crystal goes along the same paths for all subjects.

    Args:
        subjects: Name -> whose values, such as one model with neighbours found in several ways.
        records: The crystals.
        perturbations: Entries of `PERTURBATIONS`.
        seed: Of the random directions.
        counter: Is told how many more crystals are done.

    Raises:
        ConfigError: No such perturbation.
    """
    kinds = {name: choose(PERTURBATIONS, name, "perturbation") for name in perturbations}
    found, failed = list[Response](), dict[str, str]()
    settings = next(iter(subjects.values())).settings
    for number, record in enumerate(records):
        try:
            for place, (kind, start) in enumerate(kinds.items()):
                path = start(record.crystal, settings, np.random.default_rng([seed, number, place]))
                for name, values in subjects.items():
                    found += _responses(values, path, record.material_id, name, kind)
        except CrystalError as error:
            failed[record.material_id] = error.reason
        if counter:
            counter(1)
    return Probed([each for each in found if each.material_id not in failed], failed)


def _responses(values: Values, path: Path, material_id: str, name: str, kind: str) -> list[Response]:
    scans = values([path(place) for place in (0.0, *AMPLITUDES)])
    rough = roughness(values, path, PLACES)
    found = []
    for target in values.targets:
        scan = scans[target.name]
        unit = learned_unit(target) if target.task == "regression" else ""
        changes = tuple(_size(scan[1:] - scan[0]).tolist())
        found.append(Response(material_id, name, kind, target.name, unit, changes, rough[target.name]))
    return found
