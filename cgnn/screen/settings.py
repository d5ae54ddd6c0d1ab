"""Settings of a screen: which stages crystals pass through, strictly checked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from cgnn.files import write_text
from cgnn.strict import Strict, build_as, dump, load_as


class _Stage(Strict):
    name: str = Field(default="", max_length=80)
    """What tables and counts call it; by default its kind, and a number where there are several."""


class PredictStage(_Stage):
    """A model predicts its targets."""

    kind: Literal["predict"] = "predict"
    model: str
    """Run folder, model file, or the name of one of the package's own."""


class DeriveStage(_Stage):
    """Properties that follow from elastic moduli, with their bands."""

    kind: Literal["derive"] = "derive"
    properties: Annotated[tuple[str, ...], Field(min_length=1)]
    """Entries of ``cgnn.physics.RELATIONS``."""
    bulk: str = "bulk_modulus"
    """Column of the bulk modulus (GPa)."""
    shear: str = "shear_modulus"
    """Column of the shear modulus (GPa)."""
    draws: int = Field(default=200, ge=50, le=10_000)
    """Joint draws of both moduli for the bands of each crystal and for what is ranked by."""


class FilterStage(_Stage):
    """Only crystals for which a rule is true go on."""

    kind: Literal["filter"] = "filter"
    rule: str
    """Such as ``hardness_mo_p16 > 30 and clscore > 0.5``."""


class UniqueStage(_Stage):
    """Of the same crystal under several ids the best ranked goes on."""

    kind: Literal["unique"] = "unique"
    by: str = "structure"
    """An entry of ``cgnn.screen.sameness.SAMENESS``."""


class RankStage(_Stage):
    """Crystals are put in order, and only the first go on."""

    kind: Literal["rank"] = "rank"
    by: str = "value"
    """An entry of ``cgnn.screen.ranking.RANKINGS``."""
    of: str | Annotated[tuple[str, ...], Field(min_length=1)]
    """A column, or several for ``pareto``."""
    keep: int = Field(default=100, ge=1, le=100_000)
    """How many go on."""
    threshold: float | None = None
    """What is to be exceeded (``probability``) or improved on (``expected_improvement``), in the column's unit."""
    quantile: float | None = Field(default=None, gt=0, lt=1)
    """Share of the draws below the bound; by default 0.16 for ``lower_bound`` and 0.5 for ``pareto``."""
    smallest: bool | tuple[bool, ...] = False
    """Whether small values are good; for each column, or one for all."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that it ranks by."""
        return (self.of,) if isinstance(self.of, str) else self.of

    @property
    def directions(self) -> tuple[bool, ...]:
        """For each column whether small values are good."""
        return (self.smallest,) * len(self.columns) if isinstance(self.smallest, bool) else self.smallest

    @model_validator(mode="after")
    def _fits(self) -> RankStage:
        if len(self.directions) != len(self.columns):
            raise ValueError(f"smallest: expected {len(self.columns)} entries, one for each column of 'of'")
        return self


Stage = Annotated[
    PredictStage | DeriveStage | FilterStage | UniqueStage | RankStage,
    Field(discriminator="kind"),
]


class InputsConfig(Strict):
    """Inputs of first-principles calculations (VASP) of what is left at the end."""

    sets: Annotated[tuple[Literal["relax", "static", "elastic"], ...], Field(min_length=1)] = (
        "relax",
        "static",
        "elastic",
    )
    """``relax`` and ``static`` are those of the Materials Project, ``elastic`` its deformed cells."""


class ScreenConfig(Strict):
    """Everything that defines a screen."""

    stages: Annotated[tuple[Stage, ...], Field(min_length=1)]
    columns: dict[str, str] = Field(default_factory=dict)
    """Name -> column of the input (numbers), such as ``energy_above_hull``, for rules and rankings."""
    rejected: Literal["csv", "parquet"] = "csv"
    """Format of the table of rejected crystals."""
    inputs: InputsConfig | None = None
    """What is written for first-principles calculations; nothing by default."""

    @model_validator(mode="before")
    @classmethod
    def _named(cls, values: Any) -> Any:
        """Give stages without a name the name of their kind."""
        stages = values.get("stages") if isinstance(values, dict) else None
        if not isinstance(stages, list | tuple) or not all(isinstance(stage, dict) for stage in stages):
            return values
        return {**values, "stages": tuple(_with_names(stages))}

    @model_validator(mode="after")
    def _fits(self) -> ScreenConfig:
        names = [stage.name for stage in self.stages]
        twice = [name for name, count in Counter(names).items() if count > 1 or name == READ]
        if twice:
            raise ValueError(f"stages: the name {twice[0]!r} is taken; give each stage its own")
        first = next((place for place, stage in enumerate(self.stages) if stage.kind == "rank"), None)
        if first is None:
            raise ValueError("stages: none ranks; the first that does says how many crystals are kept")
        early = [place for place, stage in enumerate(self.stages[:first]) if stage.kind == "unique"]
        if early and early != [first - 1]:
            raise ValueError("stages: before the first rank, unique may stand only once and right before it")
        return self

    def save(self, path: str | Path) -> None:
        """Write the settings as YAML."""
        write_text(path, dump(self))


READ = "read"
"""The first stage of every screen: crystals are read, and each id is used once."""


def _with_names(stages: Iterable[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    met: Counter[str] = Counter()
    for stage in stages:
        kind = str(stage.get("kind", ""))
        met[kind] += 1
        yield {**stage, "name": stage.get("name") or (kind if met[kind] == 1 else f"{kind} {met[kind]}")}


def load_screen(path: str | Path, overrides: Iterable[str] = ()) -> ScreenConfig:
    """Read the settings of a screen from YAML; overrides and errors are as for `cgnn.config.load`."""
    return load_as(ScreenConfig, path, overrides)


def build_screen(values: Any, overrides: Iterable[str] = (), source: str = "settings") -> ScreenConfig:
    """Return the settings of a screen from plain values."""
    return build_as(ScreenConfig, values, overrides, source)
