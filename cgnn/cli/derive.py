"""The command ``derive``: from elastic moduli to hardness, toughness, sound and heat."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cgnn.cli.commands import app
from cgnn.cli.endings import finish_listed
from cgnn.cli.options import Strict
from cgnn.cli.voice import counting, say, show
from cgnn.errors import ConfigError

Modulus = Annotated[float | None, typer.Option(help="GPa.")]
Volume = Annotated[float | None, typer.Option(help="Å³ per atom.")]
Density = Annotated[float | None, typer.Option(help="g/cm³; follows from --formula and the volume.")]
Cell = Annotated[
    int | None, typer.Option("--atoms-per-cell", min=1, max=1_000_000, help="Atoms of the primitive cell.")
]
Formula = Annotated[str | None, typer.Option(help="Such as B4C: gives the density, and tells metals.")]
Gap = Annotated[float | None, typer.Option("--band-gap", help="eV; above 0 it is no metal.")]
Spread = Annotated[float | None, typer.Option(help="Standard deviation, GPa.")]
Correlated = Annotated[float | None, typer.Option("--correlation", help="Of the errors of both moduli, -1 to 1.")]
Draws = Annotated[int, typer.Option("--draws", min=50, help="Draws of both moduli for the bands of each crystal.")]
Properties = Annotated[list[str] | None, typer.Option("--property", help="Only this one (repeat for several).")]
ColumnNames = Annotated[
    list[str] | None, typer.Option("--column", metavar="INPUT=COLUMN", help="Column of an input, as bulk=K_mine.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON (one crystal).")]


@app.command()
def derive(
    table: Annotated[Path | None, typer.Argument(help="Table with moduli (.csv, .csv.gz, .parquet).")] = None,
    bulk: Modulus = None,
    shear: Modulus = None,
    volume_per_atom: Volume = None,
    density: Density = None,
    atoms_per_cell: Cell = None,
    formula: Formula = None,
    band_gap: Gap = None,
    bulk_std: Spread = None,
    shear_std: Spread = None,
    correlation: Correlated = None,
    draws: Draws = 500,
    property: Properties = None,
    column: ColumnNames = None,
    output: Annotated[Path | None, typer.Option("--output", help="Table to write.")] = None,
    strict: Strict = False,
    as_json: Json = False,
) -> None:
    """Derive hardness, toughness and more from elastic moduli: of one crystal, or of a table's rows."""
    crystal = {
        "bulk": bulk,
        "shear": shear,
        "volume_per_atom": volume_per_atom,
        "density": density,
        "atoms_per_cell": atoms_per_cell,
        "formula": formula,
        "band_gap": band_gap,
        "bulk_std": bulk_std,
        "shear_std": shear_std,
    }
    _check_words(table, crystal, {"--column": column, "--output": output, "--strict": strict}, as_json)
    if table is None:
        _derive_one({**crystal, "correlation": correlation}, draws, property, as_json)
    else:
        _derive_table(table, output, column or [], correlation, draws, property, strict)


def _check_words(table: Path | None, crystal: dict[str, Any], of_tables: dict[str, Any], as_json: bool) -> None:
    """Refuse options that do not go together.

    Raises:
        ConfigError: Neither a table nor both moduli, or options of the one with the other.
    """
    given = [f"--{name.replace('_', '-')}" for name, value in crystal.items() if value is not None]
    if table is not None:
        wrong = given + ["--json"] * as_json
        if wrong:
            raise ConfigError(f"{', '.join(wrong)}: for one crystal; a table has columns instead")
        return
    if crystal["bulk"] is None or crystal["shear"] is None:
        raise ConfigError("nothing to derive from: give a table, or --bulk and --shear (GPa)")
    wrong = [option for option, value in of_tables.items() if value]
    if wrong:
        raise ConfigError(f"{', '.join(wrong)}: for tables; this is one crystal")


def _derive_one(crystal: dict[str, Any], draws: int, names: list[str] | None, as_json: bool) -> None:
    from cgnn.cli.derived import one_crystal, one_text

    found, notes = one_crystal(crystal, draws, names)
    for note in notes:
        say(note)
    if as_json:
        import orjson

        show(orjson.dumps(found, option=orjson.OPT_INDENT_2).decode())
    else:
        show(one_text(found))


def _derive_table(
    table: Path,
    output: Path | None,
    columns: list[str],
    correlation: float | None,
    draws: int,
    names: list[str] | None,
    strict: bool,
) -> None:
    from cgnn.cli.derived_table import Request, derive_table, target

    place = output or target(table)
    request = Request(table, place, columns, correlation, draws, names)
    with counting() as counter:
        rows, set_aside, notes = derive_table(request, counter)
    for note in notes:
        say(note)
    say(f"derived: {place}")
    finish_listed(rows, set_aside, place.with_name(f"{place.stem}.set_aside.csv"), strict)
