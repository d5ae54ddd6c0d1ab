"""The command line: words to calls. Heavy imports happen inside the commands, so that help is instant."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cgnn.cli.voice import Epochs, LogFile, counted, epoch_line, say, show_warning, write_traceback
from cgnn.errors import CgnnError, Stopped

if TYPE_CHECKING:
    from cgnn.config import Config
    from cgnn.data.records import SetAside

app = typer.Typer(
    name="cgnn",
    help="Predict properties of crystals with graph neural networks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

DONE, FAILED, BAD_REQUEST, SOME_SET_ASIDE = 0, 1, 2, 3

ConfigPath = Annotated[Path, typer.Argument(help="Settings (YAML).")]
Overrides = Annotated[
    list[str] | None, typer.Option("--override", "-o", metavar="KEY=VALUE", help="Change one setting.")
]
Output = Annotated[Path, typer.Option("--output", help="Where the results go.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Strict = Annotated[bool, typer.Option("--strict", help="Fail if any crystal is set aside.")]
Seed = Annotated[int | None, typer.Option(help="Seed of weights, order and dropout.")]
Format = Annotated[str, typer.Option(help="Format of the input; found from its name by default.")]


@app.command()
def train(
    config: Annotated[Path | None, typer.Argument(help="Settings (YAML); not needed with --resume.")] = None,
    output: Output = Path("runs/latest"),
    override: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --output.")] = False,
    seed: Seed = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    strict: Strict = False,
) -> None:
    """Train a model and leave it in a run folder."""
    settings = _settings(config, override, {"train.seed": seed, "train.device": device}, output, resume)
    from cgnn.train import train as train_run

    with Epochs(settings.train.epochs) as report, LogFile(output):
        run = train_run(settings, output, resume=resume, report=report, progress=sys.stderr.isatty())
    _print_metrics(run.metrics, settings)
    say(f"model: {run.model_file}")
    _finish(run.set_aside, output / "set_aside.csv", strict)


@app.command()
def cv(
    config: ConfigPath,
    output: Output = Path("runs/cv"),
    folds: Annotated[int, typer.Option(min=2, help="Number of folds.")] = 5,
    override: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Keep the folds that are finished.")] = False,
    seed: Seed = None,
) -> None:
    """Train and test on k folds; print mean and spread."""
    settings = _settings(config, override, {"train.seed": seed}, output, False)
    from cgnn.train import cross_validate

    def report(fold: int) -> Callable[[dict[str, float]], None]:
        return lambda row: say(f"fold {fold + 1}/{folds}  {epoch_line(row, settings.train.epochs)}")

    result = cross_validate(settings, output, folds, resume, report)
    for name, scores in result.items():
        for key, value in scores.items():
            typer.echo(f"{name:<24} {key:<20} {value['mean']:>10.4g} ± {value['std']:.2g}")


@app.command()
def evaluate(
    model: Annotated[Path, typer.Argument(help="Run folder or model file.")],
    data: Annotated[Path, typer.Argument(help="Crystals with labels.")],
    output: Annotated[Path | None, typer.Option("--output", help="Folder for the results.")] = None,
    device: Device = "auto",
    format: Format = "auto",
    strict: Strict = False,
) -> None:
    """Score a model on crystals with labels: metrics.json, predictions.csv, parity plots."""
    from cgnn.cli.report import write_evaluation
    from cgnn.data.records import read, without_duplicates
    from cgnn.predict import Predictor

    predictor = Predictor.load(model, device)
    result = predictor.evaluate(counted(without_duplicates(read(data, format))))
    output = output or (model if model.is_dir() else model.parent) / f"evaluation-{data.name.split('.')[0]}"
    write_evaluation(result, predictor, output)
    _print_metrics({"": result.metrics}, predictor.info.config)
    say(f"results: {output}")
    _finish(result.predictions.set_aside, output / "set_aside.csv", strict)


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(help="Run folder or model file.")],
    data: Annotated[Path, typer.Argument(help="Crystals: a file or a folder.")],
    output: Output = Path("predictions.csv"),
    device: Device = "auto",
    format: Format = "auto",
    strict: Strict = False,
) -> None:
    """Predict crystals into a CSV or Parquet table, one row per crystal, physical units."""
    from cgnn.data.records import read, without_duplicates
    from cgnn.predict import Predictor

    predictor = Predictor.load(model, device)
    items = counted(without_duplicates(read(data, format)))
    rows, set_aside, flags = predictor.write(items, output)
    for flag, count in flags.items():
        say(f"warning: {count} crystals: {flag}")
    say(f"{rows} crystals predicted: {output}")
    _finish(set_aside, output.with_name(f"{output.stem}.set_aside.csv"), strict)


@app.command()
def info(model: Annotated[Path, typer.Argument(help="Run folder or model file.")]) -> None:
    """Show what a model predicts, how it was trained, and how well it does."""
    from cgnn.cli.report import describe
    from cgnn.predict import Predictor

    typer.echo(describe(Predictor.load(model, "cpu")))


@app.command()
def fetch(
    output: Annotated[Path, typer.Argument(help="File to write (.json.gz or .jsonl.gz).")],
    fields: Annotated[str, typer.Option(help="Fields, separated by commas; '' for the usual ones.")] = "",
    elasticity: Annotated[bool, typer.Option("--elasticity/--all", help="Only crystals with elastic moduli.")] = True,
) -> None:
    """Download an export from the Materials Project (API key in MP_API_KEY)."""
    from cgnn.data.mp import fetch as fetch_export

    query: dict[str, Any] = {"k_vrh": (0, 1000)} if elasticity else {}
    names = [name.strip() for name in fields.split(",") if name.strip()]
    manifest = fetch_export(output, query=query, **({"fields": names} if names else {}))
    say(f"{manifest['count']} crystals: {output}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; the exit code is 0 (done), 2 (bad request), 3 (some crystals set aside)."""
    warnings.showwarning = show_warning
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)
    try:
        app(args=list(arguments) if arguments is not None else None)
    except CgnnError as error:
        say(f"error: {error}")
        sys.exit(BAD_REQUEST)
    except BrokenPipeError:
        os._exit(DONE)  # the reader of our output has gone
    except Stopped as error:
        say("stopped; the state is saved, go on with --resume")
        sys.exit(128 + error.number)
    except Exception as error:
        say(f"internal error: {type(error).__name__}: {error}; details in {write_traceback()}")
        sys.exit(FAILED)


def _settings(
    config: Path | None, override: list[str] | None, options: dict[str, Any], output: Path, resume: bool
) -> Config:
    from cgnn.config import load
    from cgnn.errors import ConfigError

    overrides = [
        *(override or []),
        *(f"{key}={value}" for key, value in options.items() if value is not None),
    ]
    if config is not None:
        return load(config, overrides)
    if not resume:
        raise ConfigError("no settings: give a YAML file, or --resume to go on with the run in --output")
    if not (output / "config.yaml").is_file():
        raise ConfigError(f"{output}: nothing to resume: there is no config.yaml")
    return load(output / "config.yaml", overrides)


def _print_metrics(metrics: dict[str, Any], config: Config) -> None:
    from cgnn.train.metrics import to_text

    for part, scores in metrics.items():
        if part:
            typer.echo(f"\n{part}")
        typer.echo(to_text(scores, config.targets))


def _finish(set_aside: Sequence[SetAside], path: Path, strict: bool) -> None:
    """End with the exit code that says whether crystals were set aside."""
    if not set_aside:
        return
    for crystal in set_aside[:5]:
        name = crystal.material_id or crystal.source
        say(f"set aside: {name} ({crystal.source}): {crystal.reason}")
    say(f"{len(set_aside)} crystals set aside, all listed in {path}")
    raise typer.Exit(BAD_REQUEST if strict else SOME_SET_ASIDE)
