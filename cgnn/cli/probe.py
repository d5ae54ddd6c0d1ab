"""The command ``probe``: whether predictions answer smoothly to small changes of crystals."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cgnn.cli.commands import app
from cgnn.cli.options import Format, IdColumn, ModelPath, StructureColumn, read_crystals
from cgnn.cli.voice import counting, say, show
from cgnn.errors import CgnnError, DataError, MissingPackageError
from cgnn.files import write_json

if TYPE_CHECKING:
    from cgnn.data.records import Record, SetAside
    from cgnn.predict.probing import Probed, Smoothness, Values

CrystalFiles = Annotated[list[Path], typer.Argument(metavar="FILE...", help="Crystals: files or folders.")]
Ways = Annotated[
    list[str] | None,
    typer.Option("--neighbors", help="Also the same weights with neighbours found so (nearest, shells, cgcnn, ...)."),
]
Others = Annotated[list[Path] | None, typer.Option("--also", help="Also another model, with its own neighbours.")]


@app.command()
def probe(
    model: ModelPath,
    files: CrystalFiles,
    output: Annotated[Path, typer.Option("--output", help="Folder for tables and figures.")] = Path("probe"),
    neighbors: Ways = None,
    also: Others = None,
    crystals: Annotated[int, typer.Option(min=1, help="So many crystals at most, evenly from all.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random directions.")] = 0,
    format: Format = "auto",
    id_column: IdColumn = None,
    structure_column: StructureColumn = None,
) -> None:
    """Move atoms and strain cells by 1e-6 to 0.1 Å, and tell whether predictions follow smoothly or jump."""
    from cgnn.predict.probing import probe as run_probe
    from cgnn.predict.probing import verdicts
    from cgnn.predict.probing.verdict import errors_of

    items = chain.from_iterable(
        block.items() for file in files for block in read_crystals(file, format, id_column, structure_column)
    )
    chosen = _evenly(items, crystals)
    subjects = _subjects(model, neighbors or [], also or [], chosen)
    with counting() as counter:
        found = run_probe(subjects, chosen, seed=seed, counter=counter)
    for material_id, reason in found.failed.items():
        say(f"set aside: {material_id}: {reason}")
    if not found.responses:
        raise DataError("none of the crystals can be probed")
    usable = [record for record in chosen if record.material_id not in found.failed]
    errors = {name: errors_of(values, usable) for name, values in subjects.items()}
    said = verdicts(found.responses, errors)
    _write(output, found, said)
    for each in said:
        show(each.text())
    say(f"tables and figures: {output}")


def _evenly(items: Iterable[Record | SetAside], count: int) -> list[Record]:
    """Return so many of the crystals that can be read, evenly from all; say which can't.

    At no time more than 4 ``count`` crystals are held: of a long stream every second, then every fourth one is kept.
    """
    from cgnn.data.records import Record

    kept: list[Record] = []
    number, stride = 0, 1
    for item in items:
        if not isinstance(item, Record):
            say(f"set aside: {item.material_id or item.source}: {item.reason}")
            continue
        if number % stride == 0:
            kept.append(item)
        if len(kept) == 4 * count:
            kept, stride = kept[::2], 2 * stride
        number += 1
    if not kept:
        raise DataError("no crystal can be used")
    return [kept[len(kept) * place // count] for place in range(count)] if count < len(kept) else kept


def _subjects(model: Path, ways: Sequence[str], also: Sequence[Path], records: Sequence[Record]) -> dict[str, Values]:
    """Return by name whose values are probed: the model first."""
    from cgnn.predict import Predictor
    from cgnn.predict.probing import Values, same_weights

    predictor = Predictor.load(model, "cpu")
    settings = predictor.info.config.graph
    found = {
        name: Values(predictor.members, each)
        for name, each in same_weights(settings, ways, [record.crystal for record in records]).items()
    }
    for path in also:
        other = Predictor.load(path, "cpu")
        name = f"{path.name}, trained with {other.info.config.graph.neighbors}"
        if name in found:
            raise CgnnError(f"--also {path}: there is a model of that name already")
        found[name] = Values(other.members, other.info.config.graph)
    return found


def _write(output: Path, found: Probed, said: Sequence[Smoothness]) -> None:
    """Write responses.csv, jumps.csv, verdict.json and a figure per target."""
    from cgnn.data.tables import TableWriter
    from cgnn.predict.probing.probe import AMPLITUDES

    output.mkdir(parents=True, exist_ok=True)
    heads = [
        {name: getattr(each, name) for name in ("material_id", "neighbors", "perturbation", "target", "unit")}
        for each in found.responses
    ]
    changes = [
        head | {"amplitude": amplitude, "change": change}
        for head, each in zip(heads, found.responses, strict=True)
        for amplitude, change in zip(AMPLITUDES, each.changes, strict=True)
    ]
    jumps = [
        head | vars(each.roughness) | {"is_jump": int(each.is_jump)}
        for head, each in zip(heads, found.responses, strict=True)
    ]
    for name, rows in (("responses", changes), ("jumps", jumps)):
        with TableWriter(output / f"{name}.csv", {"amplitude": "Å", "at": "Å"}) as table:
            table.add({column: [row[column] for row in rows] for column in rows[0]})
    texts = [vars(each) | {"largest": each.largest.material_id, "text": each.text()} for each in said]
    write_json(output / "verdict.json", texts)
    try:
        from cgnn.plots import save
        from cgnn.plots.probe import probe_responses

        for target in dict.fromkeys(each.target for each in said):
            save(probe_responses(found.responses, target), output / f"responses-{target}.png", dpi=110)
    except MissingPackageError as error:
        warnings.warn(f"no plots: {error}", stacklevel=2)
