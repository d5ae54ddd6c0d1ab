"""Learning curves with and without transfer: the same crystals, steps and seeds, several sizes.

python benchmarks/study_transfer.py --init RUN            # all fits that are not in transfer.jsonl yet
python benchmarks/study_transfer.py --init RUN --sizes 100 300 --seeds 0 --workers 1
python benchmarks/study_transfer.py --init RUN --source energies   # RUN is another source, see transfer.yaml
python benchmarks/study_transfer.py --init RUN --arms transfer --steps 20 --epochs 1 --lines /tmp/try.jsonl
python benchmarks/study_transfer.py --table               # writes tables and pictures into docs/transfer.md

The study is ``benchmarks/studies/transfer.yaml``. Each finished fit is one line of ``transfer.jsonl`` beside it, and an
unfinished one goes on from its state in ``--folder``, so a study that was interrupted goes on where it stopped. A seed
draws the labelled crystals, the weights and the order of the crystals; the test part is the same for all: a tenth, or
with ``--test unseen`` the crystals on which the source was not trained. Graph and model settings are the source's,
which are the same for all sources; what starts from scratch stands beside each of them.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from study import DATA, ROOT, STUDIES, against, between_markers, finished, markdown, mean_and_spread, record

NAME = "transfer"
TESTS = {
    "unseen": "Tested on crystals that the source has never seen:",
    "tenth": "Tested on a tenth at random; the source has learned its own labels of most of it, as in screening, where "
    "energies (and what a potential gives) come first:",
}
"""Test part -> what stands above its table."""
Job = tuple[str, str, int]
"""Arm, size (a number or ``all``) and seed."""


def fit_one(study: dict[str, Any], job: Job, init: str, folder: Path) -> dict[str, Any]:
    """Fit one arm with one size and seed, and return its line."""
    import torch

    from cgnn.config import load
    from cgnn.data.dataset import CrystalDataset
    from cgnn.data.prepare import prepare
    from cgnn.train.curve import Arm, learning_curve
    from cgnn.train.run import Run

    torch.set_num_threads(1)
    arm, size, seed = job
    source = Run.load(init)
    common = load(ROOT / study["config"], [f"data.path={DATA / study['data']}", *study["common"], "train.threads=1"])
    config = common.model_copy(update={"model": source.config.model, "graph": source.config.graph})
    dataset = CrystalDataset(prepare(config.data, config.graph), config.targets)
    parts = _divided(study["test"], dataset, config, source)
    indices = {part: dataset.indices(getattr(parts, part)) for part in ("train", "val", "test")}
    number = len(parts.train) if size == "all" else int(size)
    batches = math.ceil(number / config.train.batch_size)
    epochs = max(study["epochs"], round(study["steps"] / batches))
    methods = {arm: Arm(tuple(change.replace("INIT", init) for change in study["arms"][arm]))}
    started = time.perf_counter()
    rows = learning_curve(
        config, dataset, indices, [number], folder, [seed], methods=methods, epochs=lambda size: epochs
    )
    scores = {name: _score(rows, name, score) for name, score in study["scores"].items()}
    line = {"arm": arm, "size": number, "asked": size, "seed": seed, "part": study["test"], "test": len(parts.test)}
    line |= {"source": study["source"]} if starts_from_source(study, arm) else {}
    seen = len({*parts.test} & {*source.split.train})
    made = {"steps": epochs * batches, "epochs": epochs, "seconds": round(time.perf_counter() - started, 1)}
    return line | scores | {"test_in_source": seen, **made}


def _divided(test: str, dataset: Any, config: Any, source: Any) -> Any:
    """Return the parts: the test part a tenth at random, or all that the source was not trained on.

    Duplicates of what it was trained on, under another id, do not count as unseen.
    """
    from cgnn.data.parts import Split
    from cgnn.data.split import split
    from cgnn.data.summary import duplicate_groups

    summaries = dataset.summaries()
    if test == "tenth":
        return split(config.data.split, summaries)
    trained = {*source.split.train}
    groups = {is_new: [] for is_new in (False, True)}
    for group in duplicate_groups(summaries):
        groups[trained.isdisjoint(group)] += group
    return Split(train=tuple(sorted(groups[False])), test=tuple(sorted(groups[True])), method="unseen")


def _score(rows: list[dict[str, Any]], target: str, score: str) -> float:
    return next(round(row["value"], 5) for row in rows if (row["target"], row["score"]) == (target, score))


def run_all(study: dict[str, Any], jobs: list[Job], options: argparse.Namespace) -> None:
    """Fit what is missing, several fits side by side with one thread each; the small sizes first."""
    lines = of(study, finished(options.lines), study["test"], study["source"])
    there = {(line["arm"], line["asked"], line["seed"]) for line in lines}
    folder = options.folder / study["source"] / study["test"]
    left = [(study, job, options.init, folder) for job in jobs if job not in there]
    record(options.lines, fit_one, left, options.workers)


def starts_from_source(study: dict[str, Any], arm: str) -> bool:
    """Tell whether an arm takes anything from the source."""
    return any("INIT" in change for change in study["arms"][arm])


def of(study: dict[str, Any], lines: list[dict[str, Any]], part: str, source: str) -> list[dict[str, Any]]:
    """Return the lines of a test part that start from a source or from scratch."""
    return [line for line in lines if line["part"] == part and line.get("source", source) == source]


def summary(study: dict[str, Any], lines: list[dict[str, Any]]) -> dict[tuple[str, str], dict[int, dict[int, float]]]:
    """Return for each target and arm the scores by size and seed."""
    found: dict[tuple[str, str], dict[int, dict[int, float]]] = {}
    for target in study["scores"]:
        for arm in study["arms"]:
            rows = found.setdefault((target, arm), {})
            for line in lines:
                if line["arm"] == arm:
                    rows.setdefault(line["size"], {})[line["seed"]] = line[target]
    return found


def table(study: dict[str, Any], lines: list[dict[str, Any]]) -> str:
    """Return the study as a Markdown table: mean and spread over the seeds, and what transfer saves.

    What it saves is taken seed by seed, of those that both arms have: the labels are the same, and how lucky they
    are matters more than the arm. Mean and its standard error.
    """
    found, base = summary(study, lines), study["against"]
    arms = [arm for arm in study["arms"] if any(line["arm"] == arm for line in lines)]
    others = [arm for arm in arms if arm != base]
    head = ["target", "labels", *arms, *(f"{arm} against {base}" for arm in others), "runs"]
    out = [head]
    for target in study["scores"]:
        for size in sorted({line["size"] for line in lines}):
            values = {arm: found[target, arm].get(size, {}) for arm in arms}
            cells = [mean_and_spread(list(values[arm].values())) for arm in arms]
            gains = [against(values[arm], values[base]) for arm in others]
            runs = " + ".join(str(len(values[arm])) for arm in arms if values[arm])
            out.append([target.replace("_", " "), f"{size:,}", *cells, *gains, runs])
    return markdown(out)


def _spread(values: list[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def protocol(study: dict[str, Any], lines: list[dict[str, Any]]) -> str:
    """Return the sentence that says how the figures were made."""
    steps = ", ".join(
        f"{size:,} labels: {steps:,} steps" for size, steps in sorted({(line["size"], line["steps"]) for line in lines})
    )
    minutes = sum(line["seconds"] for line in lines) / 60
    seen, test = max(line["test_in_source"] for line in lines), lines[0]["test"]
    source = next(line["source"] for line in lines if "source" in line)
    scores = ", ".join(f"{score.replace('_', ' ')} of {name}" for name, score in study["scores"].items())
    return (
        f"{scores} on {test} test crystals, the same for all; mean and standard deviation over the seeds, which draw "
        f"labels, weights and order. {steps}; all arms alike, no validation part, the last epoch counts. "
        f"{seen} of the test crystals were in the training part of the source, with its labels, never with these "
        f"moduli. {len(lines)} fits, {minutes:.0f} minutes of one thread; "
        f"made by `python benchmarks/study_transfer.py --init RUN --source {source}`."
    )


def draw(study: dict[str, Any], lines: list[dict[str, Any]]) -> list[Path]:
    """Draw the arms against the number of labels, a picture for each target, and return the files."""
    from cgnn import plots

    # an arm without a size has no curve; the table shows what it has
    sizes, found, files = sorted({line["size"] for line in lines}), summary(study, lines), []
    for target in study["scores"]:
        curves = {arm: found[target, arm] for arm in study["arms"] if len(found[target, arm]) == len(sizes)}
        values = {arm: [list(rows[size].values()) for size in sizes] for arm, rows in curves.items()}
        figure = plots.learning_curve(
            sizes,
            {arm: [float(np.mean(each)) for each in rows] for arm, rows in values.items()},
            spread={arm: [_spread(each) for each in rows] for arm, rows in values.items()},
            unit="log10(GPa)",
            title=f"{target.replace('_', ' ').capitalize()} from few labels",
        )
        files.append(ROOT / study["picture"].format(target=target))
        plots.save(figure, files[-1])
    return files


def write(study: dict[str, Any], lines: list[dict[str, Any]]) -> None:
    """Write tables, protocols and pictures into the study's document."""
    blocks = {
        f"{told} {title}": of(study, lines, part, source)
        for source, told in study["sources"].items()
        for part, title in TESTS.items()
    }
    told = {title: mine for title, mine in blocks.items() if any("source" in line for line in mine)}
    pieces = [piece for title, mine in told.items() for piece in (title, table(study, mine), protocol(study, mine))]
    pictures = [f"![learning curves]({file.name})" for file in draw(study, next(iter(told.values())))]
    between_markers(study["document"], NAME, "\n\n".join([*pieces, *pictures]))


def main() -> None:
    """Run the study or write its tables."""
    study = yaml.safe_load((STUDIES / f"{NAME}.yaml").read_text())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--init", default="", help="run folder of the pre-trained network")
    parser.add_argument("--source", choices=study["sources"], default=study["source"], help="what RUN has learned")
    parser.add_argument("--arms", nargs="*", choices=study["arms"], default=list(study["arms"]))
    parser.add_argument("--sizes", nargs="*", default=list(map(str, study["sizes"])))
    parser.add_argument("--seeds", nargs="*", type=int, help="by default as many as the study says for a size")
    parser.add_argument("--steps", type=int, default=study["steps"], help="least steps of a fit")
    parser.add_argument("--epochs", type=int, default=study["epochs"], help="least epochs of a fit")
    parser.add_argument(
        "--test",
        choices=list(TESTS),
        default=study["test"],
        help="test part: a tenth, or what the source lacks",
    )
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "transfer", help="where unfinished fits lie")
    parser.add_argument("--lines", type=Path, default=STUDIES / f"{NAME}.jsonl", help="a line per finished fit")
    parser.add_argument("--workers", type=int, default=2, help="fits side by side, one thread each")
    parser.add_argument("--table", action="store_true", help="write tables and pictures instead")
    options = parser.parse_args()
    study |= {"steps": options.steps, "epochs": options.epochs, "test": options.test, "source": options.source}
    if options.table:
        write(study, finished(options.lines))
        return
    if not options.init:
        parser.error("--init: give the run folder of the pre-trained network; all arms have its graphs and its size")
    counts = {str(size): count for size, count in study["sizes"].items()}
    seeds = {size: options.seeds or range(counts.get(size, 3)) for size in options.sizes}
    jobs = [(arm, size, seed) for size in options.sizes for seed in seeds[size] for arm in options.arms]
    run_all(study, jobs, options)


if __name__ == "__main__":
    main()
