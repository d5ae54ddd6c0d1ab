"""The command ``embed``: what a network makes of crystals before its heads, as a table and as maps."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cgnn.cli.commands import app
from cgnn.cli.endings import finish_listed
from cgnn.cli.options import Device, Format, IdColumn, ModelPath, StructureColumn, read_crystals
from cgnn.cli.voice import counting, say
from cgnn.errors import MissingPackageError

if TYPE_CHECKING:
    from cgnn.predict import Predictor
    from cgnn.predict.embedding import Embedding, Map


@app.command()
def embed(
    model: ModelPath,
    file: Annotated[Path, typer.Argument(help="Crystals: a file or a folder.")],
    output: Annotated[Path, typer.Option("--output", help="Folder for table and maps.")] = Path("embedding"),
    way: Annotated[str, typer.Option("--map", help="pca, or umap where umap-learn is installed.")] = "pca",
    device: Device = "auto",
    format: Format = "auto",
    id_column: IdColumn = None,
    structure_column: StructureColumn = None,
) -> None:
    """Write the features of crystals (embedding.parquet) and maps of them coloured by what is predicted."""
    from cgnn.predict import Predictor
    from cgnn.predict.embedding import embed as embedded
    from cgnn.predict.embedding import mapped

    predictor = Predictor.load(model, device)
    crystals = read_crystals(file, format, id_column, structure_column)
    with counting() as counter:
        found = embedded(predictor, iter(crystals), counter)
    place = mapped(found.features, way)
    output.mkdir(parents=True, exist_ok=True)
    _write(output, predictor, found, place)
    say(f"table and maps: {output}")
    finish_listed(len(found.ids), found.set_aside, output / "set_aside.csv", strict=False)


def _write(output: Path, predictor: Predictor, found: Embedding, place: Map) -> None:
    """Write embedding.parquet and a map per target of whole crystals."""
    from cgnn.data.tables import TableWriter

    x, y = place.points.T
    targets = [target for target in predictor.info.config.targets if target.level == "crystal"]
    columns = {"material_id": found.ids, "x": x, "y": y} | {t.name: found.columns[t.name] for t in targets}
    columns |= {f"feature_{number}": values for number, values in enumerate(found.features.T)}
    with TableWriter(output / "embedding.parquet", predictor.units) as table:
        table.add(columns)
    try:
        from cgnn.plots import save
        from cgnn.plots.embedding import embedding_map

        for target in targets:
            is_log = target.transform.startswith("log")
            figure = embedding_map(place, found.columns[target.name], target.name, target.unit, is_log=is_log)
            save(figure, output / f"map-{target.name}.png", dpi=110)
    except MissingPackageError as error:
        warnings.warn(f"no maps: {error}", stacklevel=2)
