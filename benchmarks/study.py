"""Trains the rows of a study: one change to a recipe each, over several seeds and splits.

python benchmarks/study.py recipes                      # all rows that are not in recipes.jsonl yet
python benchmarks/study.py recipes width-128 silu       # some
python benchmarks/study.py recipes --table              # writes the table into docs/recipes.md

A study is ``benchmarks/studies/NAME.yaml``: a base configuration, seeds, and overrides by row. Each finished run is
one line of ``NAME.jsonl`` beside it, so a study that was interrupted goes on where it stopped. A seed draws the split,
the weights and the order of the crystals. The same run by hand: the command that ``--table`` writes beside its row.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import yaml

ROOT = Path(__file__).parents[1]
STUDIES = Path(__file__).parent / "studies"
DATA = Path(os.environ.get("CGNN_TEST_DATA", ROOT.parent / "shared" / "data"))
BEGIN, END = "<!-- study {name}: begin -->", "<!-- study {name}: end -->"


def overrides(study: dict[str, Any], row: str, seed: int) -> list[str]:
    """Return what a run changes of the base configuration."""
    seeds = [f"data.split.seed={seed}", f"train.seed={seed}"]
    return [f"data.path={DATA / study['data']}", *study.get("common", []), *study["rows"][row], *seeds]


def run(study: dict[str, Any], row: str, seed: int, threads: int) -> dict[str, Any]:
    """Train one row with one seed and return its line."""
    import torch

    from cgnn.config import load
    from cgnn.train import train

    torch.set_num_threads(threads)
    config = load(ROOT / study["config"], [*overrides(study, row, seed), f"train.threads={threads}"])
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        result = train(config, Path(folder) / "run")
    part = "test" if "test" in result.metrics else "val"
    scores = {target.name: result.metrics[part][target.name][study["scores"][target.name]] for target in config.targets}
    seconds = sum(epoch["seconds"] for epoch in result.history)
    whole = round(time.perf_counter() - started, 1)
    line = {"row": row, "seed": seed, "part": part, **{name: round(value, 5) for name, value in scores.items()}}
    return line | {"epochs": len(result.history), "seconds": round(seconds, 1), "whole": whole, "threads": threads}


def finished(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a study that are there."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def run_all(name: str, study: dict[str, Any], wanted: list[str], workers: int) -> None:
    """Train what is missing, several runs side by side with one thread each."""
    path = STUDIES / f"{name}.jsonl"
    there = {(line["row"], line["seed"]) for line in finished(path)}
    rows = wanted or list(study["rows"])
    jobs = [(row, seed) for seed in study["seeds"] for row in rows if (row, seed) not in there]
    record(path, run, [(study, row, seed, 1) for row, seed in jobs], workers)


def record(path: Path | None, work: Callable[..., Any], jobs: Iterable[tuple[Any, ...]], workers: int) -> None:
    """Do jobs in processes side by side, and keep and print what each gives as soon as it is there.

    Args:
        path: JSON lines that are added to; without it they are only printed.
        work: Returns a line, or a list of lines.
        jobs: Its arguments.
        workers: Number of processes.
    """
    with ProcessPoolExecutor(workers) as pool:
        for future in as_completed([pool.submit(work, *job) for job in jobs]):
            if future.exception():
                pool.shutdown(cancel_futures=True)  # or the error is shown hours later, after all others
            done = future.result()
            text = "".join(json.dumps(line) + "\n" for line in (done if isinstance(done, list) else [done]))
            if path:
                with path.open("a") as file:
                    file.write(text)
            print(text, end="", flush=True)


def table(name: str, study: dict[str, Any]) -> str:
    """Return the study as a Markdown table, mean and spread over its seeds, and against the first row seed by seed."""
    lines = finished(STUDIES / f"{name}.jsonl")
    targets, base = list(study["scores"]), next(iter(study["rows"]))
    titles = [f"{target.replace('_', ' ')} ({study['scores'][target]})" for target in targets]
    out = [
        ["row", *(head for title in titles for head in (title, f"against {base}")), "runs", "minutes", "changes (`-o`)"]
    ]
    for row, changes in study["rows"].items():
        mine = [line for line in lines if line["row"] == row]
        if not mine:
            continue
        cells = []
        for target in targets:
            values, theirs = ({line["seed"]: line[target] for line in lines if line["row"] == r} for r in (row, base))
            cells += [mean_and_spread(list(values.values())), against(values, theirs, 1) if row != base else ""]
        minutes = np.mean([line["seconds"] for line in mine]) / 60
        shown = " ".join(f"`{change}`" for change in changes) or "none"
        out.append([row, *cells, str(len(mine)), f"{minutes:.1f}", shown])
    return markdown(out)


def against(values: Mapping[int, float], base: Mapping[int, float], digits: int = 0) -> str:
    """Return a cell: by how many per cent values differ from those of a base, seed by seed, of those that both have.

    Mean and, of several seeds, its standard error; empty without a common seed.
    """
    changes = [100 * (values[seed] / base[seed] - 1) for seed in values if seed in base]
    if not changes:
        return ""
    error = f" ± {np.std(changes, ddof=1) / np.sqrt(len(changes)):.{digits}f}" if len(changes) > 1 else ""
    return f"{np.mean(changes):+.{digits}f}{error} %"


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, of which the first row is the head."""
    head, *body = rows
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *body))


def mean_and_spread(values: Sequence[float], digits: int = 4) -> str:
    """Return a cell: mean and, of several, the standard deviation; empty without values."""
    if not len(values):
        return ""
    spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread}"


def write_table(name: str, study: dict[str, Any]) -> None:
    """Write the table between the markers of the document that the study names."""
    between_markers(study["document"], name, table(name, study))


def between_markers(document: str, name: str, content: str) -> None:
    """Write a study's results between its markers in a document."""
    path = ROOT / document
    begin, end = BEGIN.format(name=name), END.format(name=name)
    before, _, rest = path.read_text(encoding="utf-8").partition(begin)
    _, _, after = rest.partition(end)
    path.write_text(f"{before}{begin}\n\n{content}\n\n{end}{after}", encoding="utf-8")


def main() -> None:
    """Run a study or write its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", help="name of a file in benchmarks/studies")
    parser.add_argument("rows", nargs="*", help="rows to run; all by default")
    parser.add_argument("--workers", type=int, default=2, help="runs side by side, one thread each")
    parser.add_argument("--table", action="store_true", help="write the table instead")
    arguments = parser.parse_args()
    study = yaml.safe_load((STUDIES / f"{arguments.study}.yaml").read_text())
    if arguments.table:
        write_table(arguments.study, study)
    else:
        run_all(arguments.study, study, arguments.rows, arguments.workers)


if __name__ == "__main__":
    main()
