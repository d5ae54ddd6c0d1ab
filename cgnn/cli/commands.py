"""The command line: words to calls. Heavy imports happen inside the commands, so that help is instant."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cgnn.cli.endings import BAD_REQUEST, DONE, FAILED, finish, finish_listed, say_flags
from cgnn.cli.options import (
    By,
    ConfigPath,
    Device,
    EngineName,
    Format,
    IdColumn,
    Members,
    ModelPath,
    Output,
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
from cgnn.cli.voice import (
    LogFile,
    counted,
    counting,
    crystals_text,
    epoch_line,
    own_signals,
    own_warnings,
    say,
    show,
    write_traceback,
)
from cgnn.errors import CgnnError, DataError, Stopped
from cgnn.files import check_output

if TYPE_CHECKING:
    from cgnn.config import Config, DataConfig, GraphConfig
    from cgnn.train import Run

app = typer.Typer(name="cgnn", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

_UsageError: Any = typer.BadParameter.__base__  # of click, which typer carries under changing names


def _show_version(wanted: bool) -> None:
    if wanted:
        from cgnn import __version__

        show(f"cgnn {__version__}")
        raise typer.Exit(DONE)


Version = Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")]


@app.callback()
def _cgnn(version: Version = False) -> None:
    """Predict properties of crystals with graph neural networks."""


@app.command()
def train(
    config: Annotated[Path | None, typer.Argument(help="Settings (YAML); not needed with --resume.")] = None,
    output: Output = Path("runs/latest"),
    override: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --output.")] = False,
    seed: Seed = None,
    device: TrainDevice = None,
    strict: Strict = False,
    members: Members = None,
    by: By = None,
    side_by_side: SideBySide = None,
    workers: Workers = 0,
) -> None:
    """Train a model, or several that predict together, and leave it in a run folder."""
    settings = read_settings(config, override, {"train.seed": seed, "train.device": device}, output, resume)
    from cgnn.cli.training import training

    train_run = training(output, resume, members, by, side_by_side, workers)
    with LogFile(output):
        say(f"data: {', '.join(settings.data.paths) or 'not given'}, up to {settings.epochs} epochs")
        if strict:
            _check_all_usable(settings, output)
        if run := train_run(settings, output, resume):  # of several processes, one speaks
            _print_metrics(run.metrics, settings)
            _finish_run(run, output)


@app.command()
def combine(
    runs: Annotated[list[Path], typer.Argument(help="Folders of finished runs.")],
    output: Output = Path("runs/combined"),
) -> None:
    """Put finished runs into one model that predicts their mean, calibrated anew."""
    from cgnn.train.ensembles.combine import combine as together

    with LogFile(output):
        run = together(runs, output, counted)
        _print_metrics(run.metrics, run.config)
        _finish_run(run, output)


@app.command()
def cv(
    config: ConfigPath,
    output: Output = Path("runs/cv"),
    folds: Annotated[int, typer.Option(min=2, help="Number of folds.")] = 5,
    override: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Keep the folds that are finished.")] = False,
    seed: Seed = None,
    device: TrainDevice = None,
    strict: Strict = False,
) -> None:
    """Train and test on k folds; print mean and spread."""
    settings = read_settings(config, override, {"train.seed": seed, "train.device": device}, output, False)
    from cgnn.cli.report import cv_text, read_set_aside
    from cgnn.train import Run, cross_validate

    if strict:
        _check_all_usable(settings, output)
    result = cross_validate(settings, output, folds, resume, _fold_reports(folds, settings.epochs))
    show(cv_text(result, settings.targets))
    say(f"all folds: {output / 'cv.json'}")
    aside = output / "fold-0" / "set_aside.csv"
    finish(_size(Run.load(aside.parent).split), read_set_aside(aside), aside)


@app.command()
def evaluate(
    model: ModelPath,
    data: Annotated[Path, typer.Argument(help="Crystals with labels.")],
    output: Annotated[Path | None, typer.Option("--output", help="Folder for the results.")] = None,
    device: Device = "auto",
    format: Format = "auto",
    id_column: IdColumn = None,
    structure_column: StructureColumn = None,
    strict: Strict = False,
) -> None:
    """Score a model on crystals with labels: metrics.json, predictions.csv, parity plots."""
    output = output or (model if model.is_dir() else model.parent) / f"evaluation-{data.name.split('.')[0]}"
    _check_is_no_run(output)
    from cgnn.cli.report import write_evaluation
    from cgnn.predict import Predictor

    predictor = Predictor.load(model, device)
    crystals = read_crystals(data, format, id_column, structure_column)
    with counting() as counter:
        result = predictor.evaluate(crystals, "auto", counter=counter)
    write_evaluation(result, predictor, output)
    _print_metrics({"": result.metrics}, predictor.info.config)
    say_flags(result.predictions.flagged())
    say(f"results: {output}")
    finish(len(result.predictions), result.predictions.set_aside, output / "set_aside.csv", strict)


@app.command()
def predict(
    model: ModelPath,
    data: Annotated[Path, typer.Argument(help="Crystals: a file or a folder.")],
    output: Output = Path("predictions.csv"),
    device: Device = "auto",
    format: Format = "auto",
    id_column: IdColumn = None,
    structure_column: StructureColumn = None,
    engine: EngineName = "auto",
    workers: Workers = 0,
    strict: Strict = False,
) -> None:
    """Predict crystals into a CSV or Parquet table, one row per crystal, physical units."""
    check_output(output, data)
    from cgnn.predict import Predictor

    predictor = Predictor.load(model, device)
    crystals = read_crystals(data, format, id_column, structure_column)
    with counting() as counter:
        rows, set_aside, flags = predictor.write(crystals, output, engine, workers, counter)
    say_flags(flags)
    say(f"predictions: {output}")
    finish(rows, set_aside, output.with_name(f"{output.stem}.set_aside.csv"), strict)


@app.command()
def prepare(
    data: Annotated[Path, typer.Argument(help="Crystals: a file or a folder.")],
    output: Annotated[Path, typer.Option("--output", help="File to write (.graphs).")],
    config: Annotated[Path | None, typer.Option("--config", help="Settings (YAML) whose graph part counts.")] = None,
    override: Overrides = None,
    format: Format = "auto",
    id_column: IdColumn = None,
    structure_column: StructureColumn = None,
    engine: EngineName = "auto",
    workers: Workers = 0,
    strict: Strict = False,
) -> None:
    """Build the graphs of crystals into one file, which trains like the crystals (data.path) and opens at once."""
    from cgnn.data.engines import applied
    from cgnn.data.prepare import build, open_prepared

    settings = _graph_settings(config, override)
    source = _data_settings(data, output, format, id_column, structure_column)
    build(output, source, settings, counted, applied(engine, workers))
    store = open_prepared(output, settings)
    say(f"graphs: {output}")
    finish_listed(len(store), store.set_aside, output.with_name(f"{output.stem}.set_aside.csv"), strict)


@app.command()
def info(
    model: ModelPath,
    card: Annotated[Path | None, typer.Option(help="Write a model card (Markdown) into this file.")] = None,
) -> None:
    """Show what a model predicts, how it was trained, and how well it does."""
    from cgnn.cli.card import read_scores, write_card
    from cgnn.cli.report import describe
    from cgnn.predict import Predictor

    predictor = Predictor.load(model, "cpu")
    show(describe(predictor))
    if card is not None:
        write_card(card, predictor, read_scores(model))
        say(f"card: {card}")


@app.command()
def fetch(
    output: Annotated[Path, typer.Argument(help="File to write (.json.gz or .jsonl.gz).")],
    fields: Annotated[str, typer.Option(help="Fields, separated by commas; '' for the usual ones.")] = "",
    elasticity: Annotated[bool, typer.Option("--elasticity/--all", help="Only crystals with elastic moduli.")] = True,
    include_gnome: Annotated[bool, typer.Option("--include-gnome", help="Also GNoME's (CC BY-NC).")] = False,
) -> None:
    """Download an export from the Materials Project (API key in MP_API_KEY)."""
    from cgnn.data.mp import ELASTIC, FIELDS
    from cgnn.data.mp import fetch as fetch_export

    names = [name.strip() for name in fields.split(",") if name.strip()]
    query = ELASTIC if elasticity else {}
    manifest = fetch_export(output, query, names or FIELDS, include_gnome=include_gnome)
    say(f"{crystals_text(manifest['count'])}: {output}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit.

    The exit code is 0 (all done), 3 (done, but some crystals were set aside), 2 (a bad request, or nothing
    usable), 1 (an error of ours; its traceback is in a file), 130 or 143 (stopped by a signal).
    """
    with own_warnings(), own_signals():
        code = _run(sys.argv[1:] if arguments is None else arguments)
    sys.exit(code)


def _run(arguments: Sequence[str]) -> int:
    try:
        code = app(args=list(arguments) or ["--help"], prog_name="cgnn", standalone_mode=False)
        if code == 130:  # Ctrl-C, where there is no state to save
            say("stopped")
        return code or DONE
    except CgnnError as error:
        say(f"error: {error}")
        return BAD_REQUEST
    except _UsageError as error:
        command = error.ctx.command_path if error.ctx else "cgnn"
        say(f"error: {error.format_message()} (see {command} --help)")
        return BAD_REQUEST
    except Stopped as error:
        say("stopped; the state is saved: the same command with --resume goes on")
        return 128 + error.number
    except Exception as error:
        say(f"internal error: {type(error).__name__}: {error}; details in {write_traceback()}")
        return FAILED


def _graph_settings(config: Path | None, override: list[str] | None) -> GraphConfig:
    from cgnn.config import build, load

    if config is not None:
        return load(config, override or []).graph
    return build({"targets": [{"name": "any"}]}, override or []).graph  # graphs do not depend on the targets


def _data_settings(
    data: Path, output: Path, format: str, id_column: str | None, structure_column: str | None
) -> DataConfig:
    from cgnn.config import DataConfig
    from cgnn.data.prepare import SUFFIX

    if output.suffix != SUFFIX:
        raise DataError(f"{output}: files of prepared graphs end in {SUFFIX}; choose another --output")
    check_output(output, data)
    return DataConfig(path=str(data), format=format, id_column=id_column, structure_column=structure_column)


def _fold_reports(folds: int, epochs: int) -> Callable[[int], Callable[[dict[str, float]], None]]:
    return lambda fold: lambda row: say(f"fold {fold + 1}/{folds}  {epoch_line(row, epochs)}")


def _size(split: Any) -> int:
    return len(split.train) + len(split.val) + len(split.test)


def _check_is_no_run(folder: Path) -> None:
    if (folder / "history.jsonl").exists() or (folder / "ensemble.json").exists():
        raise DataError(
            f"{folder}: is a run folder, whose metrics.json and predictions.csv would be replaced; "
            f"choose another --output, such as {folder / 'test'}"
        )


def _check_all_usable(settings: Config, output: Path) -> None:
    """End before the training if a crystal would be set aside."""
    if not settings.data.path:
        return  # refused by the training itself
    from cgnn.data.dataset import CrystalDataset
    from cgnn.data.prepare import prepare
    from cgnn.data.tables import write_set_aside

    dataset = CrystalDataset(prepare(settings.data, settings.graph, counted), settings.targets)
    if dataset.set_aside:
        path = output.with_name(f"{output.name}.set_aside.csv")
        write_set_aside(path, dataset.set_aside)
        finish(len(dataset), dataset.set_aside, path, strict=True)


def _print_metrics(metrics: dict[str, Any], config: Config) -> None:
    from cgnn.train.metrics import to_text

    for part, scores in metrics.items():
        show(f"{part}\n{to_text(scores, config.targets)}\n" if part else to_text(scores, config.targets))


def _finish_run(run: Run, output: Path) -> None:
    say(f"model: {run.model_file}")
    finish(_size(run.split), run.set_aside, output / "set_aside.csv")
