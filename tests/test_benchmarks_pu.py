"""Baselines of learning from positives and unlabelled crystals, on tens of crystals."""

import json
import sys

import numpy as np
import pandas as pd
import pytest
import yaml
from test_benchmarks import RUN

CONFIG = "targets:\n  - {name: label, task: binary}\npu: {column: label, bags: 3}\n"


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(RUN.parent))
    import proxy_pu
    import study_pu
    import tabular_pu

    return proxy_pu, tabular_pu, study_pu


@pytest.fixture
def crystals(embedded_documents):
    """Structures with a property, as the Parquet files have them."""
    rows = []
    for document in embedded_documents[:80]:
        sites = document["structure"]["sites"]
        rows.append(
            {
                "immutable_id": document["material_id"],
                "nsites": len(sites),
                "lattice_vectors": document["structure"]["lattice"]["matrix"],
                "cartesian_site_positions": [site["xyz"] for site in sites],
                "species_at_sites": [site["species"][0]["element"] for site in sites],
                "bulk_modulus": document["bulk_modulus"]["vrh"],
            }
        )
    return pd.DataFrame(rows)


@pytest.fixture
def files(benchmarks, crystals, tmp_path):
    """Settings and a proxy."""
    below = crystals.bulk_modulus.median()
    benchmarks[0].hide(crystals, "bulk_modulus", below, 0.5).to_parquet(tmp_path / "proxy.parquet")
    (tmp_path / "pu.yaml").write_text(CONFIG)
    return tmp_path / "pu.yaml", tmp_path / "proxy.parquet"


@pytest.fixture
def read(benchmarks, files, tmp_path):
    """Reads the crystals of the proxy."""
    config = benchmarks[1].load(files[0], [f"data.path={files[1]}"])
    return lambda: benchmarks[1].read(config, tmp_path / "features")


@pytest.fixture
def run(benchmarks, files, tmp_path, monkeypatch, capsys):
    """Runs the baselines on a proxy and returns the printed lines."""
    tabular_pu = benchmarks[1]

    def run(*words):
        common = ["tabular_pu.py", "--config", str(files[0]), "-o", f"data.path={files[1]}", "--bags", "3"]
        places = ["--cache", str(tmp_path / "features"), "--lines", str(tmp_path / "pu.jsonl")]
        monkeypatch.setattr(sys, "argv", [*common, *places, *map(str, words)])
        tabular_pu.main()
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return run


def test_the_proxy_hides_part_of_the_truth(benchmarks, crystals):
    found = benchmarks[0].hide(crystals, "bulk_modulus", 100.0, 0.3, seed=1)
    truth = (crystals.bulk_modulus < 100.0).to_numpy()
    assert found.truth.tolist() == truth.astype(int).tolist()
    assert found.label.sum() == round(0.3 * truth.sum())
    assert (found.label <= found.truth).all()
    assert "bulk_modulus" not in found
    again = benchmarks[0].hide(crystals, "bulk_modulus", 100.0, 0.3, seed=1)
    assert again.label.tolist() == found.label.tolist()
    assert benchmarks[0].hide(crystals, "bulk_modulus", 100.0, 0.3, seed=2).label.tolist() != found.label.tolist()


def test_rows_have_the_same_crystals(run, benchmarks, tmp_path):
    lines = run("--truth", "truth", "--scores", tmp_path / "scores")
    assert [line["row"] for line in lines] == list(benchmarks[1].ROWS)
    assert len({line["heldout"] for line in lines}) == 1
    trees, constant = lines[0], lines[-1]
    assert trees["truth_roc_auc"] > 0.7  # the bulk modulus follows from the elements
    assert (constant["truth_roc_auc"], constant["recall"], constant["flagged"]) == (0.5, 1, 1)
    assert constant["recall_at_share"] == 0.208
    kept = [json.loads(line) for line in (tmp_path / "pu.jsonl").read_text().splitlines()]
    assert kept == lines
    table = pd.read_csv(tmp_path / "scores" / "trees" / "scores.csv")
    assert list(table) == ["material_id", "clscore", "clscore_std", "votes"]
    assert (table.votes <= 3).all()
    assert (table.votes < 3).any()  # drawn by some bag
    heldout = pd.read_csv(tmp_path / "scores" / "trees" / "heldout.csv")
    assert (heldout.votes == 3).all()
    assert not set(heldout.material_id) & set(table.material_id)


def test_runs_stand_beside_the_trees(run, tmp_path):
    (line,) = run("--rows", "trees", "--scores", tmp_path / "scores")
    folder = tmp_path / "scores" / "trees"
    # the trees themselves in place of two runs: then both together are the same again
    runs = ["--run", f"one={folder}", "--run", f"other={folder}"]
    found = run("--rows", "trees", *runs, "--picture", tmp_path / "recall.png")
    assert [each["row"] for each in found] == ["trees", "one", "other", "one and other"]
    for name in ("recall", "flagged", "roc_auc_unlabelled"):
        assert {each[name] for each in found} == {line[name]}
    assert (tmp_path / "recall.png").stat().st_size > 0


def test_a_run_of_other_crystals_is_refused(run, tmp_path):
    from cgnn.errors import DataError

    run("--rows", "a constant", "--scores", tmp_path / "scores")
    with pytest.raises(DataError, match=r"heldout\.csv: scores of other crystals"):
        run("--rows", "a constant", "--run", f"run={tmp_path / 'scores' / 'a_constant'}", "-o", "pu.seed=5")


def test_no_bag_of_trees_votes_on_what_it_saw(benchmarks, read):
    crystals = read()
    assert np.array_equal(crystals.features, read().features, equal_nan=True)  # once computed, once from the cache
    votes = benchmarks[1].bagged(crystals.features, crystals, 2)
    for bag in range(2):
        draw = crystals.plan.draw(bag)
        assert np.isnan(votes[bag, crystals.rows([*draw.train, *draw.val])]).all()
        assert np.isfinite(votes[bag, crystals.rows(crystals.plan.outside(draw))]).all()


def test_the_table_says_how_it_was_made(run, benchmarks):
    lines = run("--truth", "truth")
    table = benchmarks[1].table(lines)
    assert "**proxy**" in table
    assert "truth: AUC / AP" in table
    assert "published" not in table
    assert "    python benchmarks/tabular_pu.py --config" in table
    assert f"{lines[0]['recall_at_share']:.1%} ± {lines[0]['recall_at_share_se']:.1%}" in table
    assert "- `lee_liu`: recall squared" in table


SMALL = ["model.width=4", "model.depth=1", "model.head_width=4", "train.epochs=1", "train.threads=1"]


# the embedded alloys have formulas in common, and one may be drawn by both bags
@pytest.mark.filterwarnings("ignore:.*are the same as a positive:UserWarning")
@pytest.mark.filterwarnings("ignore:.*were drawn by all:UserWarning")
def test_a_network_of_the_study(run, benchmarks, files, tmp_path, monkeypatch, capsys):
    trees, constant = run("--truth", "truth", "--rows", "trees", "a constant")
    study_pu = benchmarks[2]
    rows = {
        "bagging": {"of": "layers", "changes": ["pu.bags=2"]},
        "nnpu": {"of": "layers", "changes": ["pu.bags=1", "pu.way=nnpu", "pu.prior=PRIOR"]},
    }
    data = {"proxy": {"path": str(files[1]), "common": ["pu.column=label"], "truth": "truth"}}
    (tmp_path / "studies").mkdir()
    study = {"classifiers": {"layers": {"config": str(files[0]), "common": SMALL}}, "data": data, "rows": rows}
    (tmp_path / "studies" / "pu.yaml").write_text(yaml.safe_dump(study))
    monkeypatch.setattr(study_pu, "STUDIES", tmp_path / "studies")
    words = ["study_pu.py", "proxy", "--side-by-side", "serial", "--folder", str(tmp_path), "--lines"]
    monkeypatch.setattr(sys, "argv", [*words, str(tmp_path / "pu.jsonl")])
    study_pu.main()
    bagging, nnpu = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert bagging["heldout"] == nnpu["heldout"] == trees["heldout"] == constant["heldout"]
    assert (bagging["bags"], nnpu["bags"]) == (2, 1)
    assert f"pu.prior={trees['alpha_best_bin']:g}" in nnpu["command"]
    assert 0 <= nnpu["truth_roc_auc"] <= 1
    study_pu.main()  # all rows are there
    assert capsys.readouterr().out == ""
    assert len((tmp_path / "pu.jsonl").read_text().splitlines()) == 4


def test_nnpu_wants_the_trees_first(benchmarks):
    with pytest.raises(SystemExit, match=r"proxy: the prior comes from the trees; run benchmarks/tabular_pu\.py first"):
        benchmarks[2].prior([], "proxy")


def test_every_row_of_the_study_is_a_valid_change(benchmarks, files):
    study_pu = benchmarks[2]
    study = yaml.safe_load((study_pu.STUDIES / "pu.yaml").read_text())
    lines = [{"data": data, "row": "trees", "alpha_best_bin": 0.2} for data in study["data"]]
    for data in study["data"]:
        for row in study["rows"]:
            file = study_pu.ROOT / study_pu.classifier(study, row)["config"]
            study_pu.load(file, study_pu.overrides(study, data, row, lines))
