"""Stages of a screen: each adds columns to crystals and says which of them go no further, and why."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cgnn.data.dataset import EDGES_PER_BATCH
from cgnn.data.items import Finished, Item, Record
from cgnn.errors import ConfigError, choose, unknown
from cgnn.physics import RELATIONS, derive, flags
from cgnn.physics.propagation import QUANTILES
from cgnn.predict import Predictor
from cgnn.predict.forward import Building, Network, Piece
from cgnn.screen.chunk import Chunk, Columns, Known, Moduli, Reasons
from cgnn.screen.ranking import RANKINGS, Aim
from cgnn.screen.rules import NUMBER, Rule
from cgnn.screen.settings import DeriveStage, FilterStage, PredictStage, RankStage
from cgnn.screen.uncertain import draws_of, has_errors, moduli_draws

Array = NDArray[np.float64]
_NOVELTY = "novelty"
SCORE = "rank_score"
"""Column of what crystals are ranked by: for several properties ``rank_score_1``, ..."""


class Step(Protocol):
    """What is done with a chunk; pure but for the columns and flags that it adds, and it can be pickled."""

    name: str

    def apply(self, chunk: Chunk) -> Reasons:
        """Add columns to a chunk and return why some of its crystals go no further."""
        ...


@dataclass
class Predict:
    """Predicts the crystals of a chunk by one model.

    Args:
        name: Of the stage.
        building: From crystals to graphs.
        network: From graphs to predictions.
        columns: Columns that it gives.
        is_on_gpu: Whether the network runs on one, which workers do not share.
    """

    name: str
    building: Building
    network: Network
    columns: tuple[str, ...]
    is_on_gpu: bool = False

    @classmethod
    def of(cls, settings: PredictStage, known: Known, device: str) -> tuple[Predict, Known]:
        """Load the model.

        Raises:
            CheckpointError: There is no such model.
            ConfigError: Its columns are there already, or it predicts no whole crystals.
        """
        predictor = Predictor.load(settings.model, device)
        targets = [target for target in predictor.info.config.targets if target.level == "crystal"]
        if not targets:
            raise ConfigError(f"stage {settings.name!r}: model {settings.model} predicts no property of whole crystals")
        confidence = predictor.confidence
        units: dict[str, str] = {}
        for target in targets:
            names = [f"{target.name}_p_{label}" for label in target.classes] if target.task == "multiclass" else []
            units |= dict.fromkeys(names or [target.name], target.unit)
        usable = [target for target in confidence.targets if target.level == "crystal"]
        units |= {f"{t.name}{ending}": t.unit for t in usable for ending in ("_std", "_lower", "_upper")}
        taken = [name for name in units if name in known.kinds]
        if taken:
            raise ConfigError(
                f"stage {settings.name!r}: column {taken[0]!r} is there already; two models that predict the same are "
                "trained as an ensemble"
            )
        network = Network(predictor.members, predictor.info.elements, confidence, predictor.device)
        building = Building(predictor.info.config.graph)
        novelty = {_NOVELTY: ""} if confidence.novelty else {}
        pairs = confidence.correlation.names
        gives = known.having(
            units | novelty,
            logarithmic={target.name: target.transform == "log10" for target in usable},
            correlations={(a, b): float(confidence.correlation.matrix[i, j])
                          for i, a in enumerate(pairs) for j, b in enumerate(pairs) if i != j},
        )  # fmt: skip
        is_on_gpu = predictor.device.type != "cpu"
        return cls(settings.name, building, network, (*units, *novelty), is_on_gpu), gives

    def apply(self, chunk: Chunk) -> Reasons:
        """Add the predictions; what is far from training for one of several models counts as far."""
        records: list[Item] = [Record(*pair) for pair in zip(chunk.ids, chunk.crystals, strict=True)]
        found: Columns = {name: np.full(len(chunk), np.nan) for name in self.columns}
        said = [""] * len(chunk)
        reasons: Reasons = {}
        first = 0
        for graphs in self.building.parts(Finished(records), EDGES_PER_BATCH):
            piece = self.network.predict(graphs)
            first += self._placed(piece, first, found, said, reasons)
        if _NOVELTY in found and _NOVELTY in chunk.columns:
            found[_NOVELTY] = np.maximum(found[_NOVELTY], chunk.columns[_NOVELTY])
        chunk.columns |= found
        chunk.flag(said)
        return reasons

    def _placed(self, piece: Piece, first: int, found: Columns, said: list[str], reasons: Reasons) -> int:
        """Put a piece's predictions where its crystals stand, and return how many these are."""
        used = [first + row for row, (*_, aside) in enumerate(piece.rows) if aside is None]
        reasons |= {first + row: aside.reason for row, (*_, aside) in enumerate(piece.rows) if aside}
        for name in self.columns if used else ():
            found[name][used] = piece.columns[name]
        for row, flag in zip(used, piece.flags, strict=True):
            said[row] = flag
        return len(piece.rows)


@dataclass
class Derive:
    """Derives properties from elastic moduli, with bands where the errors of both are known.

    Args:
        name: Of the stage.
        properties: Entries of `RELATIONS`.
        bulk: Column of the bulk modulus.
        shear: Column of the shear modulus.
        moduli: How they are drawn; None where their errors are unknown.
    """

    name: str
    properties: tuple[str, ...]
    bulk: str
    shear: str
    moduli: Moduli | None

    @classmethod
    def of(cls, settings: DeriveStage, known: Known, device: str) -> tuple[Derive, Known]:
        """Check that the moduli are there.

        Raises:
            ConfigError: A modulus lacks, or there is no such property.
        """
        for column in (settings.bulk, settings.shear):
            if known.kinds.get(column) != NUMBER:
                numbers = [name for name, kind in known.kinds.items() if kind == NUMBER]
                raise ConfigError(
                    f"stage {settings.name!r}: {unknown(column, numbers, 'modulus')}; a model before it must predict it"
                )
        bulk, shear = settings.bulk, settings.shear
        has_both = bulk in known.logarithmic and shear in known.logarithmic
        correlation = known.correlations.get((bulk, shear), 0.0)
        moduli = Moduli(bulk, shear, correlation, settings.draws) if has_both else None
        endings = ("", *QUANTILES) if moduli else ("",)
        what = f"derived property (stage {settings.name!r})"
        units = {f"{name}{ending}": choose(RELATIONS, name, what).unit
                 for name in settings.properties for ending in endings}  # fmt: skip
        step = cls(settings.name, settings.properties, bulk, shear, moduli)
        more = {"atoms_per_cell": ""} if step.needs_cell else {}
        return step, known.having(units | more, moduli=dict.fromkeys(settings.properties, (bulk, shear, moduli)))

    @property
    def needs_cell(self) -> bool:
        """Whether a property needs the primitive cell, which costs a search for symmetry."""
        return any("atoms_per_cell" in RELATIONS[name].needs for name in self.properties)

    def apply(self, chunk: Chunk) -> Reasons:
        """Add the properties; crystals with moduli that are none go no further."""
        reasons: Reasons = {}
        for what, column in (("bulk modulus", self.bulk), ("shear modulus", self.shear)):
            values = chunk.columns[column]
            for row in np.flatnonzero(~(np.isfinite(values) & (values > 0))).tolist():
                reasons.setdefault(row, f"{what}: expected a number above 0, got {values[row]:g} GPa ({column})")
        kept = [row for row in range(len(chunk)) if row not in reasons]
        names = [
            f"{name}{ending}" for name in self.properties for ending in (("", *QUANTILES) if self.moduli else ("",))
        ]
        made: Columns = {name: np.full(len(chunk), np.nan) for name in names}
        if self.needs_cell and "atoms_per_cell" not in chunk.columns:
            chunk.columns["atoms_per_cell"] = np.array([_primitive_atoms(crystal) for crystal in chunk.crystals])
        if kept:
            self._derive(chunk.taken(kept), kept, made, chunk)
        chunk.columns |= made
        return reasons

    def _derive(self, part: Chunk, rows: Sequence[int], made: Columns, chunk: Chunk) -> None:
        columns = part.columns
        bulk, shear = columns[self.bulk], columns[self.shear]
        rest = {name: columns[name] for name in ("volume_per_atom", "density")}
        if self.needs_cell:
            rest["atoms_per_cell"] = columns["atoms_per_cell"]
        samples = moduli_draws(part, self.moduli) if self.moduli else None
        for name, values in derive(bulk, shear, **rest, samples=samples, names=self.properties).items():
            made[name][rows] = values
        nu = derive(bulk, shear, names=["poisson_ratio"])["poisson_ratio"]
        said = [""] * len(chunk)
        for row, flag in zip(rows, flags(nu, columns["metal"].astype(np.bool_)), strict=True):
            said[row] = "" if flag in chunk.flags[row] else flag
        chunk.flag(said)


def _primitive_atoms(crystal: Any) -> float:
    """Return the number of atoms of the primitive cell; of the given one where no symmetry is found."""
    import spglib

    positions = crystal.pos @ np.linalg.inv(crystal.lattice)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of how it tells errors; both ways are met here
        try:
            found = spglib.find_primitive((crystal.lattice, positions, crystal.z), symprec=0.1)
        except spglib.error.SpglibError:
            found = None
    return float(len(crystal) if found is None else len(found[2]))


@dataclass
class Filter:
    """Keeps the crystals for which a rule is true.

    Args:
        name: Of the stage.
        rule: The rule.
    """

    name: str
    rule: Rule

    @classmethod
    def of(cls, settings: FilterStage, known: Known, device: str) -> tuple[Filter, Known]:
        """Read the rule.

        Raises:
            ConfigError: It is none, or names a column that is not there.
        """
        try:
            rule = Rule.parse(settings.rule)
            rule.check(known.kinds)
        except ConfigError as error:
            raise ConfigError(f"stage {settings.name!r}: {error}") from None
        return cls(settings.name, rule), known

    def apply(self, chunk: Chunk) -> Reasons:
        """Return why crystals are dropped, with the numbers that say so."""
        return self.rule.reasons(chunk.columns) if len(chunk) else {}


@dataclass
class Score:
    """Gives crystals what they are ranked by; those that have none go no further.

    Args:
        name: Of the stage.
        settings: Of the stage.
        known: What is known of the columns.
    """

    name: str
    settings: RankStage
    known: Known

    @classmethod
    def of(cls, settings: RankStage, known: Known, device: str) -> tuple[Score, Known]:
        """Check that the ranking fits what it ranks.

        Raises:
            ConfigError: No such ranking or column, no threshold, several columns where one is wanted, or no errors.
        """
        known = known.without_scores(SCORE)
        try:
            _check_ranking(settings, known)
        except ConfigError as error:
            raise ConfigError(f"stage {settings.name!r}: {error}") from None
        step = cls(settings.name, settings, known)
        unit = "" if settings.by == "probability" else known.units.get(settings.columns[0], "")
        units = {SCORE: unit} if len(step.columns) == 1 else {
            name: known.units.get(source, "") for name, source in zip(step.columns, settings.columns, strict=True)
        }  # fmt: skip
        return step, known.having(units)

    @property
    def columns(self) -> list[str]:
        """Columns of what is ranked by."""
        count = len(self.settings.columns)
        return [SCORE] if count == 1 else [f"{SCORE}_{place}" for place in range(1, count + 1)]

    def apply(self, chunk: Chunk) -> Reasons:
        """Add the scores, in place of those of an earlier ranking; large ones are good, whatever the direction."""
        reasons: Reasons = {}
        ranking, settings = RANKINGS[self.settings.by], self.settings
        share = settings.quantile if settings.quantile is not None else ranking.quantile or 0.5
        columns = zip(self.columns, settings.columns, settings.directions, strict=True)
        for column in [name for name in chunk.columns if name.startswith(SCORE)]:
            del chunk.columns[column]
        for column, source, is_smallest in columns:
            sign = -1.0 if is_smallest else 1.0
            aim = Aim(share, sign * (settings.threshold or 0.0))
            draws = sign * draws_of(source, chunk, self.known) if len(chunk) else np.zeros((0, 1))
            scores = ranking.score(draws, aim)
            barred = source in RELATIONS and not RELATIONS[source].for_metals
            metal = chunk.columns["metal"].astype(np.bool_) & barred
            chunk.columns[column] = np.where(metal, np.nan, scores)
            for row in np.flatnonzero(metal | np.isnan(scores)).tolist():
                why = f"metal or alloy: {source} is not valid for it" if metal[row] else f"{source} is unknown"
                reasons.setdefault(row, f"not ranked: {why} ({source} {chunk.columns[source][row]:.5g})")
        return reasons

    def shown(self, columns: Columns, row: int) -> str:
        """Return a crystal's scores for people."""
        found = []
        for column, source, is_smallest in zip(
            self.columns, self.settings.columns, self.settings.directions, strict=True
        ):
            unit = "" if self.settings.by == "probability" else self.known.units.get(source, "")
            has_sign = is_smallest and self.settings.by not in ("probability", "expected_improvement")
            value = -columns[column][row] if has_sign else columns[column][row]
            found.append(f"{self.settings.by} of {source} {value:.5g}{' ' if unit else ''}{unit}")
        return ", ".join(found)


def _check_ranking(settings: RankStage, known: Known) -> None:
    ranking = choose(RANKINGS, settings.by, "ranking")
    if len(settings.columns) > 1 and not ranking.is_front:
        raise ConfigError(f"{settings.by} ranks by one column; several are for pareto")
    if len(settings.columns) == 1 and ranking.is_front:
        raise ConfigError(f"{settings.by} ranks by two columns or more, got only {settings.columns[0]!r}")
    numbers = [name for name, kind in known.kinds.items() if kind == NUMBER]
    for name in settings.columns:
        if name not in numbers:
            raise ConfigError(unknown(name, numbers, "column"))
        if ranking.needs_errors and not has_errors(name, known):
            raise ConfigError(
                f"{settings.by} of {name!r} needs its errors, which are known of columns that calibrated models "
                "predict and of what is derived from them; rank by value"
            )
    if ranking.needs_threshold and settings.threshold is None:
        raise ConfigError(f"{settings.by} needs a threshold, such as 40")
    if not ranking.needs_threshold and settings.threshold is not None:
        raise ConfigError(f"{settings.by} has no threshold")
    if ranking.quantile is None and settings.quantile is not None:
        raise ConfigError(f"{settings.by} has no quantile")


Maker = Callable[[Any, Known, str], tuple[Any, Known]]

STEPS: dict[str, Maker] = {"predict": Predict.of, "derive": Derive.of, "filter": Filter.of, "rank": Score.of}
"""Kind of a stage -> what makes it from its settings, what is known so far and the device; it gives what is known
after it. ``unique`` looks at several crystals at once (`cgnn.screen.selection`)."""
