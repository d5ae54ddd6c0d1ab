"""What crystals without labels give, by the number of labels: each way of ``cgnn.train.ways.semi`` beside none.

python benchmarks/study_semi.py                                       # all that is not in semi.jsonl yet
python benchmarks/study_semi.py mean_teacher --sizes 100 300 --seeds 0
python benchmarks/study_semi.py --extra 5000                          # also 5000 structures of another file, unlabelled
python benchmarks/study_semi.py --table                               # writes the table into docs/semi.md

The study is ``benchmarks/studies/semi.yaml``. A fixed tenth is the test part; of the others, as many as the size says
keep their labels, drawn by the seed, and the rest is unlabelled. No label beyond these chooses anything: every fit
takes the steps of its size and its last epoch. Each finished run is one line of ``semi.jsonl``; a run that was
stopped goes on in the folder ``--work``. Ways that learn without labels first are fine-tuned from what they left, which
is made once for each seed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import time
from collections import Counter, defaultdict
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from study import DATA, ROOT, STUDIES, against, between_markers, finished, markdown, mean_and_spread, record

from cgnn.config import Config, SplitConfig, load
from cgnn.data.dataset import CrystalDataset
from cgnn.data.prepare import prepare
from cgnn.data.split import CrystalSummary, reduced_formula, split
from cgnn.files import write_text
from cgnn.train import Fitted, fit
from cgnn.train.method import Indices
from cgnn.train.metrics import evaluate
from cgnn.train.run import method_of, predict_part
from cgnn.train.ways.semi import WAYS, MeanTeacher, SelfTraining

RESULTS = STUDIES / "semi.jsonl"
TOGETHER = {"self_training": SelfTraining, "mean_teacher": MeanTeacher}
"""Ways that learn from both at once, and their settings."""


class Job(NamedTuple):
    """One run.

    Args:
        way: An entry of ``ways`` of the study.
        size: Number of labels, or ``all``.
        seed: Draws the labels, the weights and the order.
        extra: Number of structures of the other file.
    """

    way: str
    size: int | str
    seed: int
    extra: int


def crystals(study: dict[str, Any], extra: int, work: Path) -> tuple[CrystalDataset, Indices, Indices]:
    """Return the crystals, and the indices of those with labels to draw from and of the test part."""
    path = str(DATA / study["data"])
    config = load(ROOT / study["config"], [f"data.path={path}"])
    dataset = CrystalDataset(prepare(config.data, config.graph), config.targets)
    summaries = dataset.summaries()
    parts = split(SplitConfig(val=0.0, test=0.1, seed=0), summaries)
    if extra:
        test = {reduced_formula(summary) for summary in summaries if summary.material_id in set(parts.test)}
        path = str(with_extra(study, extra, test, work))
        config = load(ROOT / study["config"], [f"data.path={path}"])
        dataset = CrystalDataset(prepare(config.data, config.graph), config.targets, keep_unlabelled=True)
    return dataset, dataset.indices(parts.train), dataset.indices(parts.test)


def with_extra(study: dict[str, Any], extra: int, formulas: set[str], work: Path) -> Path:
    """Write one file of the moduli and some structures of another file, none with a formula of the test part."""
    import gzip

    import pandas as pd
    from pymatgen.core import Structure

    path = work / f"moduli-and-{extra}.jsonl"
    if path.exists():
        return path
    with gzip.open(DATA / study["data"]) as handle:
        lines = [json.dumps(document) for document in json.load(handle)]
        there = {json.loads(line)["material_id"] for line in lines}
    table = pd.read_parquet(DATA / study["extra"]).sample(frac=1.0, random_state=0)
    for row in table.itertuples():
        if len(lines) == len(there) + extra:
            break
        positions = np.stack(row.cartesian_site_positions)
        lattice = np.stack(row.lattice_vectors)
        structure = Structure(lattice, list(row.species_at_sites), positions, coords_are_cartesian=True)
        summary = CrystalSummary(row.immutable_id, Counter(row.species_at_sites), structure.volume, ())
        if row.immutable_id not in there and reduced_formula(summary) not in formulas:
            lines.append(json.dumps({"material_id": row.immutable_id, "structure": structure.as_dict()}))
    write_text(path, "\n".join(lines) + "\n")
    return path


def settings(study: dict[str, Any], job: Job, labels: int, changes: list[str]) -> Config:
    """Return the settings of a fit with labels; ``changes`` come last."""
    batch = next(int(entry.split("=")[1]) for entry in study["common"] if entry.startswith("train.batch_size"))
    epochs = round(study["steps"][job.size] / math.ceil(labels / batch))
    common = [*study["common"], f"train.epochs={epochs}", f"train.seed={job.seed}", "train.threads=1"]
    return load(ROOT / study["config"], [*common, *changes])


def run(study: dict[str, Any], job: Job, work: Path, changes: list[str]) -> dict[str, Any]:
    """Train and test one way with one number of labels, and return its line."""
    import torch

    torch.set_num_threads(1)
    started = time.perf_counter()
    dataset, pool, test = crystals(study, job.extra, work)
    drawn = np.random.default_rng([job.seed, 1]).permutation(pool)
    labels = np.sort(drawn if job.size == "all" else drawn[: job.size])
    others = np.setdiff1d(np.arange(len(dataset)), np.concatenate([labels, test]))
    config = settings(study, job, len(labels), changes)
    folder = work / f"{job.way}-{job.size}-{job.seed}-{job.extra}"
    parts = {"train": labels, "val": np.array([], dtype=np.int64)}
    if job.way in TOGETHER:
        chosen = TOGETHER[job.way](**study["ways"][job.way])
        fitted = WAYS[job.way](config, dataset, parts, others, folder, resume=True, settings=chosen)
    else:
        if job.way in WAYS:
            source = pretrained(study, job, dataset, np.union1d(labels, others), work, changes)
            start = [f"transfer.init_from={source}", "transfer.take=[embed, convs, edge_updates]"]
            config = settings(study, job, len(labels), [*changes, *start])
        fitted = fit(config, dataset, parts, folder, resume=True, method=method_of(config, folder, resume=True))
    line = job._asdict() | {"labels": len(labels), "unlabelled": len(others)} | score(fitted, dataset, test, study)
    return line | {"epochs": len(fitted.history), "whole": round(time.perf_counter() - started, 1)}


def pretrained(
    study: dict[str, Any], job: Job, dataset: CrystalDataset, structures: Indices, work: Path, changes: list[str]
) -> Path:
    """Return the model that learned without labels, made once for each seed whatever the number of labels."""
    folder = work / f"pretrained-{job.way}-{job.seed}-{job.extra}"
    order = np.random.default_rng([job.seed, 3]).permutation(structures)
    held = len(order) // 20  # for the history only: the last epoch is as good as another
    common = [*study["common"], *study["pretrain"], f"train.seed={job.seed}", "train.threads=1"]
    config = load(ROOT / study["config"], [*common, *changes])
    parts = {"train": np.array([], dtype=np.int64), "val": np.sort(order[:held])}
    WAYS[job.way](config, dataset, parts, np.sort(order[held:]), folder, resume=True, **study["ways"][job.way])
    return folder / "best" / "model.safetensors"


def score(fitted: Fitted, dataset: CrystalDataset, test: Indices, study: dict[str, Any]) -> dict[str, float]:
    """Return the score of each target on the test part."""
    truth = {target.name: dataset.label(target, test) for target in dataset.targets}
    found = evaluate(dataset.targets, truth, predict_part([fitted.model], dataset, test), {})
    return {name: round(float(found[name][key]), 5) for name, key in study["scores"].items()}


def run_all(study: dict[str, Any], jobs: list[Job], work: Path, workers: int, changes: list[str]) -> None:
    """Train what is missing, several runs side by side with one thread each."""
    if changes:
        work = work / hashlib.sha256("\n".join(changes).encode()).hexdigest()[:12]
    there = {Job(line["way"], line["size"], line["seed"], line["extra"]) for line in finished(RESULTS)}
    work.mkdir(parents=True, exist_ok=True)
    # two runs that want the same pretrained model would make it twice: one run of each seed and way goes first
    for wave in _waves(study, [job for job in jobs if job not in there]):
        # tried with other settings, a run is none of the study
        record(None if changes else RESULTS, run, [(study, job, work, changes) for job in wave], workers)


def _waves(study: dict[str, Any], jobs: list[Job]) -> list[list[Job]]:
    first: dict[tuple[str, int, int], Job] = {}
    for job in jobs:
        first.setdefault((job.way, job.seed, job.extra), job)
    leading = list(first.values())
    return [wave for wave in (leading, [job for job in jobs if job not in leading]) if wave]


def table(study: dict[str, Any], lines: list[dict[str, Any]]) -> str:
    """Return the study as a Markdown table: mean and spread over the seeds, and against labels alone seed by seed."""
    sizes = [size for size in study["steps"] if any(line["size"] == size for line in lines)]
    base = next(iter(study["ways"]))
    tables = []
    for target, key in study["scores"].items():
        scores: dict[tuple[str, int, int | str], dict[int, float]] = defaultdict(dict)
        for line in lines:
            scores[line["way"], line["extra"], line["size"]][line["seed"]] = line[target]
        heads = [head for size in sizes for head in (f"{size} labels", f"against {base}")]
        out = [[f"{target.replace('_', ' ')} ({key})", *heads, "runs"]]
        for extra, way in product(sorted({line["extra"] for line in lines}), study["ways"]):
            mine = [scores[way, extra, size] for size in sizes]
            if not any(mine):
                continue
            cells = []
            for size, values in zip(sizes, mine, strict=True):
                theirs = scores[base, 0, size] if (way, extra) != (base, 0) else {}
                cells += [mean_and_spread(list(values.values())), against(values, theirs, 1)]
            name = way.replace("_", " ") + (f" + {extra} structures" if extra else "")
            out.append([name, *cells, ", ".join(str(len(values)) for values in mine)])
        tables.append(markdown(out))
    return "\n\n".join(tables)


def write_table(study: dict[str, Any]) -> None:
    """Write the table between the markers of the document that the study names."""
    between_markers(study["document"], "semi", table(study, finished(RESULTS)))


def main() -> None:
    """Run the study or write its table."""
    study = yaml.safe_load((STUDIES / "semi.yaml").read_text())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ways", nargs="*", help=f"ways to run; all by default: {', '.join(study['ways'])}")
    parser.add_argument("--sizes", nargs="+", default=list(study["steps"]), help="numbers of labels")
    parser.add_argument("--seeds", nargs="+", type=int, default=study["seeds"])
    parser.add_argument("--extra", type=int, default=0, help="structures of the other file, unlabelled")
    parser.add_argument("--workers", type=int, default=2, help="runs side by side, one thread each")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "semi", help="folder of unfinished runs")
    parser.add_argument("-o", dest="changes", action="append", default=[], help="try with other settings; not recorded")
    parser.add_argument("--table", action="store_true", help="write the table instead")
    arguments = parser.parse_args()
    unknown = set(arguments.ways) - set(study["ways"])
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))} (known: {', '.join(study['ways'])})")
    if arguments.table:
        write_table(study)
        return
    sizes = [size if size == "all" else int(size) for size in arguments.sizes]
    ways = arguments.ways or list(study["ways"])
    jobs = [Job(way, size, seed, arguments.extra) for seed in arguments.seeds for size in sizes for way in ways]
    # with all labels and no other structures there is nothing unlabelled to learn from together
    jobs = [job for job in jobs if job.way not in TOGETHER or job.size != "all" or job.extra]
    run_all(study, jobs, arguments.work, arguments.workers, arguments.changes)


if __name__ == "__main__":
    main()
