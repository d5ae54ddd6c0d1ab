"""The commands ``pu fit``, ``pu score`` and ``pu evaluate``: what is known to exist, and what nothing is known of."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cgnn.cli.commands import app
from cgnn.cli.endings import finish, say_flags
from cgnn.cli.options import (
    Device,
    EngineName,
    Format,
    IdColumn,
    Overrides,
    Seed,
    SideBySide,
    Strict,
    StructureColumn,
    TrainDevice,
    Workers,
    read_crystals,
    read_settings,
)
from cgnn.cli.voice import LogFile, counted, counting, epoch_line, say, show
from cgnn.files import check_output

pu = typer.Typer(no_args_is_help=True, help="Learn from crystals known to exist and others of which nothing is known.")
app.add_typer(pu, name="pu")

Run = Annotated[Path, typer.Argument(metavar="MODEL", help="Folder that pu fit wrote.")]
PUModel = Annotated[Path, typer.Argument(help="Folder that pu fit wrote, or its model file.")]
Published = Annotated[Path | None, typer.Option(help="Table (CSV) of other scores to compare: id, score.")]


@pu.command()
def fit(
    config: Annotated[Path | None, typer.Argument(help="Settings (YAML); not needed with --resume.")] = None,
    output: Annotated[Path, typer.Option("--output", help="Where the model and the scores go.")] = Path("runs/pu"),
    override: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --output.")] = False,
    bags: Annotated[int | None, typer.Option(min=1, help="Number of classifiers.")] = None,
    seed: Seed = None,
    device: TrainDevice = None,
    side_by_side: SideBySide = None,
    workers: Workers = 0,
) -> None:
    """Fit bags of classifiers; leave a model and the out-of-bag score of every unlabelled crystal (scores.csv)."""
    options = {"train.seed": seed, "train.device": device, "pu.bags": bags}
    settings = read_settings(config, override, options, output, resume)
    from cgnn.cli.pu_report import bag_line, duplicates_line
    from cgnn.config import PUConfig
    from cgnn.train.pu import pu_fit

    number, epochs = (settings.pu or PUConfig()).bags, settings.epochs
    with LogFile(output):
        say(f"data: {', '.join(settings.data.paths) or 'not given'}, {number} bags of up to {epochs} epochs")
        run = pu_fit(
            settings,
            output,
            resume,
            side_by_side or "auto",
            workers,
            lambda bag: lambda row: say(f"bag {bag + 1}/{number}  {epoch_line(row, epochs)}"),
            counted,
            lambda row: say(bag_line(row)),
        )
        show(bag_line(run.progress[-1]))
        say(duplicates_line(output))
        say(f"scores: {output / 'scores.csv'}, model: {run.model_file}")
        finish(run.plan.number, run.set_aside, output / "set_aside.csv")


@pu.command()
def score(
    model: PUModel,
    data: Annotated[Path, typer.Argument(help="Candidates: a file or a folder of crystals.")],
    output: Annotated[Path, typer.Option("--output", help="Table to write (.csv or .parquet).")] = Path("scores.csv"),
    device: Device = "auto",
    format: Format = "auto",
    id_column: IdColumn = None,
    structure_column: StructureColumn = None,
    engine: EngineName = "auto",
    workers: Workers = 0,
    strict: Strict = False,
) -> None:
    """Score new crystals: the mean over all bags, with the columns of scores.csv."""
    check_output(output, data)
    from cgnn.cli.pu_report import say_seen
    from cgnn.predict import Predictor
    from cgnn.predict.pu import Tables

    predictor = Predictor.load(model, device)
    tables = Tables(predictor)
    crystals = read_crystals(data, format, id_column, structure_column)
    with counting() as counter:
        rows, set_aside, flags = predictor.write(crystals, output, engine, workers, counter, tables)
    say_flags(flags)
    say_seen(model, tables.ids)
    say(f"scores: {output}")
    finish(rows, set_aside, output.with_name(f"{output.stem}.set_aside.csv"), strict)


@pu.command()
def evaluate(
    model: Run,
    output: Annotated[Path | None, typer.Option("--output", help="Folder for the results.")] = None,
    threshold: Annotated[float, typer.Option(min=0, max=1, help="Score from which a crystal is flagged.")] = 0.5,
    share: Annotated[float, typer.Option(min=0, max=1, help="Also: recall where this share is flagged.")] = 0.208,
    recall: Annotated[float, typer.Option(min=0, max=1, help="Also: threshold that finds so many positives.")] = 0.9,
    prior: Annotated[
        str, typer.Option(help="Estimate of the share of positives: best_bin or elkan_noto.")
    ] = "best_bin",
    published: Published = None,
) -> None:
    """Tell how good the scores are: recall beside the share flagged, what is estimated from it, and pictures."""
    from cgnn.cli.pu_report import evaluation, evaluation_text, write_evaluation
    from cgnn.train.pu import PURun

    run = PURun.load(model)
    found = evaluation(run, threshold, share, recall, prior, published)
    folder = output or model / "evaluation"
    write_evaluation(run, found, folder)
    show(evaluation_text(found))
    say(f"results: {folder}")
