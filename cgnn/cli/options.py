"""Options that commands share, and what is made of them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cgnn.errors import ConfigError

if TYPE_CHECKING:
    from cgnn.config import Config
    from cgnn.data.items import Block

ConfigPath = Annotated[Path, typer.Argument(help="Settings (YAML).")]
ModelPath = Annotated[
    Path, typer.Argument(help="Run folder, model file, or a name: elasticity, formation_energy, band_gap.")
]
Overrides = Annotated[
    list[str] | None, typer.Option("--override", "-o", metavar="KEY=VALUE", help="Change one setting.")
]
Output = Annotated[Path, typer.Option("--output", help="Where the results go.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
TrainDevice = Annotated[str | None, typer.Option("--device", help="auto, cpu or cuda.")]
Strict = Annotated[bool, typer.Option("--strict", help="Fail if any crystal is set aside.")]
Seed = Annotated[int | None, typer.Option(help="Seed of weights, order and dropout.")]
Format = Annotated[str, typer.Option(help="Format of the input; found from its name by default.")]
IdColumn = Annotated[str | None, typer.Option("--id-column", help="Column of the ids.")]
StructureColumn = Annotated[str | None, typer.Option("--structure-column", help="Column of the crystals.")]
EngineName = Annotated[str, typer.Option("--engine", help="auto, serial, processes or ray (a cluster).")]
Workers = Annotated[int, typer.Option(min=0, help="Worker processes; 0: one for each processor.")]
Members = Annotated[
    int | None, typer.Option("--members", min=1, help="Train so many networks, which predict together (an ensemble).")
]
By = Annotated[str | None, typer.Option("--by", help="What makes members differ: seed (default) or bootstrap.")]
SideBySide = Annotated[
    str | None,
    typer.Option(
        "--side-by-side", help="How members are trained: auto, serial, processes, batched or ray (a cluster)."
    ),
]


def read_settings(
    config: Path | None, override: list[str] | None, options: dict[str, Any], output: Path, resume: bool
) -> Config:
    """Return the settings of a command: of its YAML file, or with ``--resume`` those of the run in ``--output``.

    Raises:
        ConfigError: There is no file of settings, or something in it is wrong.
    """
    from cgnn.config import load

    overrides = [
        *(override or []),
        *(f"{key}={value}" for key, value in options.items() if value is not None),
    ]
    if config is not None:
        return load(config, overrides)
    if not resume:
        raise ConfigError("no settings: give a YAML file, or --resume to go on with the run in --output")
    if not (output / "config.yaml").is_file():
        raise ConfigError(f"{output}: nothing to resume: there is no config.yaml (expected the folder of a run)")
    return load(output / "config.yaml", overrides)


def read_crystals(path: Path, format: str, id_column: str | None, structure_column: str | None) -> Iterable[Block]:
    """Yield the crystals of a file or folder, as the options of its format say."""
    from cgnn.data.records import blocks

    return blocks(path, format, id_column, structure_column)
