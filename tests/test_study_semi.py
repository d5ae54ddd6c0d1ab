"""The study of crystals without labels, on tens of crystals."""

import json

import numpy as np
import pandas as pd
import pytest
import yaml
from test_benchmarks import RUN


@pytest.fixture
def study_semi(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(RUN.parent))
    import study_semi

    monkeypatch.setattr(study_semi, "RESULTS", tmp_path / "semi.jsonl")
    return study_semi


@pytest.fixture
def small(study_semi, export, embedded_documents, tmp_path, monkeypatch):
    """The study with few crystals and steps; a file of other structures has ten."""
    monkeypatch.setenv("CGNN_CACHE", str(tmp_path / "cache"))
    study = yaml.safe_load((study_semi.STUDIES / "semi.yaml").read_text())
    rows = []
    for document in embedded_documents[1::50][:10]:
        sites = document["structure"]["sites"]
        rows.append(
            {
                "immutable_id": f"other-{document['material_id']}",
                "lattice_vectors": document["structure"]["lattice"]["matrix"],
                "cartesian_site_positions": [site["xyz"] for site in sites],
                "species_at_sites": [site["species"][0]["element"] for site in sites],
            }
        )
    pd.DataFrame(rows).to_parquet(tmp_path / "extra.parquet")
    common = [*study["common"], "model.width=4", "model.depth=1", "model.head_width=4", "train.batch_size=5"]
    common = [entry for entry in common if entry not in ("train.batch_size=32", "model.width=64", "model.depth=3")]
    return study | {
        "data": str(export),
        "extra": str(tmp_path / "extra.parquet"),
        "steps": {10: 20, "all": 7},
        "common": common,
        "pretrain": ["train.epochs=1"],
    }


def test_every_way_runs_once_and_is_not_run_again(study_semi, small, tmp_path, monkeypatch, capsys):
    jobs = [study_semi.Job(way, 10, 0, 0) for way in small["ways"]] + [study_semi.Job("denoising", "all", 0, 0)]
    monkeypatch.setattr("study.ProcessPoolExecutor", InThisProcess)
    study_semi.run_all(small, jobs, tmp_path / "work", 1, [])
    lines = study_semi.finished(tmp_path / "semi.jsonl")
    by_job = {study_semi.Job(*(line[name] for name in study_semi.Job._fields)): line for line in lines}
    assert set(by_job) == set(jobs)  # they are written as they finish
    assert {by_job[job]["epochs"] for job in jobs[:-1]} == {10}  # twenty steps, two in an epoch
    assert [(by_job[job]["labels"], by_job[job]["unlabelled"]) for job in jobs] == [(10, 26)] * 5 + [(36, 0)]
    scores = {(line["bulk_modulus"], line["shear_modulus"]) for line in lines}
    assert len(scores) == len(jobs)  # each way gives another model
    study_semi.run_all(small, jobs, tmp_path / "work", 1, [])
    assert len(study_semi.finished(tmp_path / "semi.jsonl")) == len(jobs)
    text = study_semi.table(small, lines)
    heads = "10 labels | against supervised | all labels | against supervised"
    assert f"| bulk modulus (mae_log10) | {heads} | runs |" in text
    teacher, base = (by_job[jobs[number]]["bulk_modulus"] for number in (2, 0))
    assert f"| mean teacher | {teacher:.4f} | {100 * (teacher / base - 1):+.1f} % |  |  | 1, 0 |" in text
    assert f"| supervised | {base:.4f} |  |  |  | 1, 0 |" in text


class InThisProcess:
    """Stands for a pool of processes."""

    def __init__(self, workers):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def submit(self, function, *arguments):
        from concurrent.futures import Future

        future = Future()
        future.set_result(function(*arguments))
        return future


def test_other_structures_share_no_formula_with_the_test_part(study_semi, small, tmp_path):
    usual, pool, test = study_semi.crystals(small, 0, tmp_path)
    dataset, same_pool, same_test = study_semi.crystals(small, 3, tmp_path)
    assert len(dataset) == len(usual) + 3
    assert [dataset.ids[index] for index in same_test] == [usual.ids[index] for index in test]
    assert [dataset.ids[index] for index in same_pool] == [usual.ids[index] for index in pool]
    others = [index for index in range(len(dataset)) if dataset.ids[index].startswith("other-")]
    assert all(np.isnan(dataset.label(target, np.array(others))).all() for target in dataset.targets)
    formulas = [study_semi.reduced_formula(summary) for summary in dataset.summaries()]
    assert not {formulas[index] for index in others} & {formulas[index] for index in same_test}


def test_first_runs_make_what_later_ones_share(study_semi):
    jobs = [study_semi.Job("denoising", size, seed, 0) for seed in (0, 1) for size in (10, 20)]
    assert study_semi._waves({}, jobs) == [[jobs[0], jobs[2]], [jobs[1], jobs[3]]]


def test_trials_are_not_recorded(study_semi, small, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("study.ProcessPoolExecutor", InThisProcess)
    study_semi.run_all(small, [study_semi.Job("supervised", 10, 0, 0)], tmp_path / "work", 1, ["train.epochs=1"])
    assert json.loads(capsys.readouterr().out)["epochs"] == 1
    assert not (tmp_path / "semi.jsonl").exists()
