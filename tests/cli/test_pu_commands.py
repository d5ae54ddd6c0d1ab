"""pu fit, pu score and pu evaluate on tens of crystals."""

import csv
import json

import numpy as np
import pytest
import yaml

from cgnn.predict import Predictor


@pytest.fixture(scope="module")
def settings(embedded_documents, tmp_path_factory):
    """Settings of a run of a second, as a file, beside its crystals."""
    folder = tmp_path_factory.mktemp("pu_commands")
    chosen = embedded_documents[::13][:60]
    documents = [
        {**d, "theoretical": "Cu" not in d["chemsys"].split("-"), "recent": "Pd" in d["chemsys"]} for d in chosen
    ]
    (folder / "export.json").write_text(json.dumps(documents))
    (folder / "few.json").write_text(json.dumps(embedded_documents[1:8]))
    values = {
        "targets": [{"name": "synthesizable", "task": "binary"}],
        "data": {"path": str(folder / "export.json"), "cache": str(folder)},
        "model": {"width": 4, "depth": 1, "gaussians": 6, "head_width": 4},
        "train": {"epochs": 2, "batch_size": 16, "device": "cpu"},
        "pu": {"bags": 3, "val": 0.2, "ratio": 0.5, "later": "recent"},
    }
    (folder / "pu.yaml").write_text(yaml.safe_dump(values))
    return folder


def rows(path):
    with path.open() as handle:
        return list(csv.DictReader(handle))


def test_fit_score_and_evaluate(cgnn, settings, tmp_path):
    model = tmp_path / "model"
    said = cgnn("pu", "fit", settings / "pu.yaml", "--output", model, "--side-by-side", "serial", "--bags", 4)
    assert said.code == 0, said.err
    assert "4 bags: recall" in said.out
    assert "bag 4/4  epoch 2/2" in said.err
    assert "of the unlabelled, 0 are the same crystal as a positive" in said.err
    assert "bag 1/4" in (model / "log.txt").read_text()
    scores = rows(model / "scores.csv")
    assert list(scores[0]) == ["material_id", "clscore", "clscore_std", "votes"]
    assert [row["material_id"] for row in scores] == sorted(row["material_id"] for row in scores)

    said = cgnn("pu", "score", model, settings / "few.json", "--output", tmp_path / "new.csv", "--device", "cpu")
    assert said.code == 0, said.err
    found = rows(tmp_path / "new.csv")
    assert list(found[0]) == list(scores[0])
    expected = Predictor.load(model, "cpu").predict(settings / "few.json")
    assert [row["material_id"] for row in found] == expected.ids
    np.testing.assert_allclose([float(row["clscore"]) for row in found], expected["synthesizable"], rtol=1e-6)
    assert {row["votes"] for row in found} == {"4"}
    assert not list(tmp_path.glob("new.csv.units*"))

    said = cgnn("pu", "score", model, settings / "export.json", "--output", tmp_path / "seen.csv", "--device", "cpu")
    assert "of the candidates have ids of training positives" in said.err
    assert "unlabelled crystals that bags may have drawn" in said.err

    said = cgnn("pu", "evaluate", model, "--published", model / "scores.csv", "--prior", "elkan_noto")
    assert said.code == 0, said.err
    assert "share of held-out positives that reach the threshold" in said.out
    assert "rank correlation with the other table: 1.000" in said.out
    figures = json.loads((model / "evaluation" / "evaluation.json").read_text())
    heldout = [float(row["clscore"]) for row in rows(model / "heldout.csv")]
    assert figures["figures"]["recall"] == pytest.approx(np.mean(np.array(heldout) >= 0.5))
    assert figures["bags"] == 4
    assert set(figures["priors"]) == {"best_bin", "elkan_noto"}
    assert "Cu" in figures["elements"]
    assert set(figures["baselines"]) == {"constant one", "nearest compositions"}
    assert figures["baselines"]["constant one"]["flagged"] == 1
    assert 0 < figures["baselines"]["nearest compositions"]["roc_auc_unlabelled"] < 1
    assert "constant one  nearest compositions" in said.out
    pictures = {path.stem for path in (model / "evaluation").glob("*.png")}
    assert pictures >= {"scores", "recall", "roc", "progress", "elements"}
    probabilities = rows(model / "evaluation" / "probabilities.csv")
    assert len(probabilities) == len(scores)

    said = cgnn("pu", "fit", "--resume", "--output", model, "--side-by-side", "serial")
    assert said.code == 0, said.err
    assert rows(model / "scores.csv") == scores
    assert cgnn("info", model).code == 0


def test_bad_requests(cgnn, settings, trained, tmp_path):
    for arguments, message in (
        (("fit", settings / "pu.yaml", "-o", "pu.column=theoretcal"), "unknown column 'theoretcal'; did you mean"),
        (("fit", settings / "pu.yaml", "-o", "pu.bag=3"), "pu.bag: unknown key; did you mean 'bags'"),
        (("fit", settings / "pu.yaml", "-o", "pu.column=nsites"), "expected 1, true, positive"),
        (("score", trained, settings / "few.json"), "the model is none of positive and unlabelled"),
        (("evaluate", trained), "no finished run of positive and unlabelled"),
    ):
        said = cgnn("pu", *arguments, "--output", tmp_path / "out.csv")
        assert said.code == 2, said.err
        assert message in said.err
    assert cgnn("train", settings / "pu.yaml", "--output", tmp_path / "run").code == 2
