"""The command ``explain``: which atoms and bonds predictions rest on."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cgnn.cli.commands import app
from cgnn.cli.options import Format, IdColumn, ModelPath, StructureColumn, read_crystals
from cgnn.cli.voice import say, show
from cgnn.errors import CrystalError, DataError, MissingPackageError

if TYPE_CHECKING:
    from cgnn.data.records import Record
    from cgnn.predict.explain import Explanation

_SAID = 3
"""So many atoms and bonds of a crystal are shown; the tables hold all."""


@app.command()
def explain(
    model: ModelPath,
    file: Annotated[Path, typer.Argument(help="Crystals: a file or a folder.")],
    output: Annotated[Path, typer.Option("--output", help="Folder for tables and pictures.")] = Path("explanation"),
    target: Annotated[str | None, typer.Option(help="Only this target.")] = None,
    way: Annotated[str, typer.Option(help="integrated (gradients) or gradient (times input).")] = "integrated",
    crystals: Annotated[int, typer.Option(min=1, help="So many crystals at most, the first of the file.")] = 5,
    format: Format = "auto",
    id_column: IdColumn = None,
    structure_column: StructureColumn = None,
) -> None:
    """Say how much each atom and each bond adds to a prediction; leave atoms.csv, bonds.csv and pictures."""
    from cgnn.data.records import SetAside
    from cgnn.predict import Predictor
    from cgnn.predict.explain import explain as explained

    predictor = Predictor.load(model, "cpu")
    found: list[tuple[Record, Explanation]] = []
    used = 0
    for item in (item for block in read_crystals(file, format, id_column, structure_column) for item in block.items()):
        if isinstance(item, SetAside):
            say(f"set aside: {item.material_id or item.source}: {item.reason}")
            continue
        try:
            found += [(item, each) for each in explained(predictor, item.crystal, target, way)]
        except CrystalError as error:
            say(f"set aside: {item.material_id}: {error.reason}")
            continue
        used += 1
        if used == crystals:
            break
    if not found:
        raise DataError("no crystal can be used")
    _write(output, found)
    for record, each in found:
        show(_text(record, each))
    say(f"tables and pictures: {output}")


def _text(record: Record, found: Explanation) -> str:
    """Return the value and the atoms and bonds with the largest parts."""
    symbols = [site.specie.symbol for site in record.structure]
    bonds = found.bonds()
    largest = sorted(range(len(symbols)), key=lambda atom: -abs(found.atoms.parts[atom]))[:_SAID]
    atoms = ", ".join(f"{symbols[atom]}{atom} {found.atoms.parts[atom]:+.2g}" for atom in largest)
    pairs = ", ".join(
        f"{symbols[i]}{i}-{symbols[j]}{j} {part:+.2g}"
        for (i, j), part in zip(bonds.atoms[:_SAID].tolist(), bonds.parts[:_SAID].tolist(), strict=True)
    )
    head = f"{record.material_id}, {found.target.name.replace('_', ' ')}: {found.atoms.value:.4g} {found.unit}".rstrip()
    gap = max(abs(found.atoms.gap), abs(found.edges.gap))
    return (
        f"{head}; atoms ({found.atoms.reference:.4g} with average ones): {atoms}; "
        f"bonds ({found.edges.reference:.4g} without any): {pairs or 'none'}; unexplained {gap:.1g}"
    )


def _write(output: Path, found: list[tuple[Record, Explanation]]) -> None:
    """Write atoms.csv, bonds.csv and a picture per crystal and target."""
    from cgnn.data.tables import TableWriter

    output.mkdir(parents=True, exist_ok=True)
    with (
        TableWriter(output / "atoms.csv", {}) as atoms,
        TableWriter(output / "bonds.csv", {"distance": "Å"}) as bonds,
    ):
        for record, each in found:
            atoms.add(_columns(record, each, _atom_columns(record, each)))
            bonds.add(_columns(record, each, _bond_columns(each)))
    try:
        from cgnn.plots import save
        from cgnn.plots.attribution import explanation_picture

        for number, (record, each) in enumerate(found, start=1):
            # ids come from the file: of theirs only what can do no harm goes into a path
            name = re.sub(r"[^\w-]", "_", record.material_id)[:80]
            path = output / f"{number}-{name}-{each.target.name}.png"
            save(explanation_picture(record.structure, each), path, dpi=110)
    except MissingPackageError as error:
        warnings.warn(f"no pictures: {error}", stacklevel=2)


def _columns(record: Record, found: Explanation, columns: dict[str, Any]) -> dict[str, Any]:
    """Return columns with those in front that say what they belong to."""
    rows = len(columns["part"])
    return {"material_id": [record.material_id] * rows, "target": [found.target.name] * rows} | columns


def _atom_columns(record: Record, found: Explanation) -> dict[str, Any]:
    symbols = [site.specie.symbol for site in record.structure]
    return {"atom": list(range(len(symbols))), "element": symbols, "part": found.atoms.parts.tolist()}


def _bond_columns(found: Explanation) -> dict[str, Any]:
    bonds = found.bonds()
    distance = (bonds.vectors**2).sum(1) ** 0.5
    first, second = bonds.atoms.T.tolist()
    return {"atom": first, "other": second, "distance": distance.tolist(), "part": bonds.parts.tolist()}
