"""The tabular baseline and the study of unseen chemistry, on a few crystals."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from cgnn.config import GraphConfig, SplitConfig
from cgnn.data.dataset import CrystalDataset
from cgnn.data.reading.gate import check_structure
from cgnn.data.records import Record
from cgnn.data.store import GraphStore, StoreWriter
from cgnn.graph.build import GraphBuilder
from cgnn.targets import Target

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def study():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        import study_chemistry

        yield study_chemistry


@pytest.fixture(scope="module")
def tabular(study):
    return study.tabular


def test_features_do_not_depend_on_the_description(tabular, tmp_path, rng):
    lattice = Lattice.from_parameters(4.1, 4.7, 5.3, 85, 97, 106)
    crystal = Structure(
        lattice,
        ["Fe", "O", "O", "Ti"],
        rng.random((4, 3)) * 0.2 + [[0, 0, 0], [0.5, 0, 0.5], [0, 0.5, 0.5], [0.5, 0.5, 0]],
    )
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    turned = Structure(lattice.matrix @ turn, crystal.species, crystal.frac_coords)
    same = [crystal, crystal * (2, 1, 1), turned, Structure.from_sites(list(crystal)[::-1])]
    other = Structure(lattice.scale(1.1 * lattice.volume), crystal.species, crystal.frac_coords)
    builder = GraphBuilder(GraphConfig())
    with StoreWriter(tmp_path / "store", "key") as writer:
        for number, structure in enumerate([*same, other]):
            writer.add(Record(f"c{number}", check_structure(structure), {"k": 1.0}), builder.arrays(structure))
    found = tabular.crystal_features(CrystalDataset(GraphStore(tmp_path / "store"), [Target(name="k")]))
    assert np.isfinite(found).all()
    for row in found[1:4]:
        np.testing.assert_allclose(row, found[0], rtol=1e-4, atol=1e-5)
    assert np.abs(found[4] - found[0]).max() > 0.01


def test_trees_learn_and_pass_over_unknown_labels(tabular, rng):
    features = rng.normal(size=(300, 5))
    labels = features[:, 0] + 0.5 * features[:, 1]
    known = np.where(np.arange(200) % 5 == 0, np.nan, labels[:200])
    for models in (["boosting"], ["trees"], ["boosting", "trees"]):
        guess = tabular.fit_predict(features[:200], known, features[200:], models)
        assert np.abs(guess - labels[200:]).mean() < 0.4 * np.abs(labels[200:]).mean()
    again = tabular.fit_predict(features[:200], known, features[200:])
    np.testing.assert_array_equal(again, guess)


def test_command_prints_the_scores_of_train(export):
    command = [sys.executable, BENCHMARKS / "tabular.py", "--data", export, "--seeds", "0", "1"]
    command += ["--models", "trees", "--targets", "shear_modulus", "-o", "data.split.val=0.3"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout
    assert "random split, seed 1, val part" in printed
    assert "MAE (log10)" in printed
    assert "shear_modulus: mae_log10" in printed.splitlines()[-1]
    assert "bulk_modulus" not in printed


def small(tmp_path):
    return ["model.width=8", "model.gaussians=12", "train.epochs=1", f"data.cache={tmp_path}"]


@pytest.mark.parametrize("protocol", ["random", "prototype", "hardest"])
def test_a_run_gives_its_lines(study, export, tmp_path, protocol):
    lines = study.run(protocol, "descriptors", 0, small(tmp_path), export)
    lines += study.run(protocol, "tabular", 0, small(tmp_path), export)
    (kernel,) = study.run(protocol, "kernel", 0, small(tmp_path), export)
    assert 0 < kernel["bulk_modulus"] < kernel["bulk_modulus_baseline"]
    assert [line["row"] for line in lines] == ["descriptors", "mean", "tabular"]
    assert len({(line["n"], line["trained"], line["bulk_modulus_baseline"]) for line in lines}) == 1
    for target in study.TARGETS:
        network, mean, trees = (line[target] for line in lines)
        assert 0 < trees < 1
        assert mean <= (network + trees) / 2 + 1e-4  # an error of a mean is at most the mean of the errors
    there = [{**line, "protocol": protocol} for line in lines]
    left = study.jobs([protocol], study.ROWS, 1, there)
    assert left == [(protocol, row, 0) for row in ("properties", "one_hot", "both", "kernel")]


def test_every_protocol_and_row_is_a_valid_configuration(study):
    for protocol in study.PROTOCOLS:
        for row in study.ROWS:
            config = study.settings(protocol, row, 1)
            assert (config.data.split.seed, config.train.seed, config.train.epochs) == (1, 1, 40)
            assert isinstance(config.data.split, SplitConfig)
    assert set(study.TITLES) == {*study.ROWS, study.MEAN}


def lines_of(study, protocol, errors, seeds=1):
    zero = {f"{target}_baseline": 0.3 for target in study.TARGETS}
    return [
        {"protocol": protocol, "row": row, "seed": seed, "n": 10, "trained": 90, "seconds": 1.0, **zero}
        | dict.fromkeys(study.TARGETS, error + 0.01 * seed)
        for row, error in errors.items()
        for seed in range(seeds)
    ]


def test_tables_and_advice_follow_the_numbers(study, tmp_path):
    lines = lines_of(study, "random", {"properties": 0.08, "one_hot": 0.10, "tabular": 0.05}, 2)
    for element in study.ELEMENTS:
        lines += lines_of(study, f"element-{element}", {"properties": 0.2, "one_hot": 0.3, "tabular": 0.25})
    path = tmp_path / "doc.md"
    path.write_text("before\n<!-- study chemistry: begin -->\nold\n<!-- study chemistry: end -->\nafter\n")
    study.write_tables(path, lines)
    study.write_tables(path, lines)
    text = path.read_text()
    assert text.startswith("before\n")
    assert text.endswith("<!-- study chemistry: end -->\nafter\n")
    assert "old" not in text
    assert "| random | 10 | 0.300 | 0.0850 ± 0.0071 | 0.1050 ± 0.0071 |  |  | **0.0550** ± 0.0071 |  |  | 2 |" in text
    assert "**a random tenth**: trees, no network, then element properties (+54.5%)." in text
    assert (
        "**new elements**: element properties, then trees, no network (+25.0%); +135% against a random tenth." in text
    )
    assert "One-hot elements alone against properties alone: +50%." in text
    assert "new prototypes" not in text


def test_lines_that_are_stored_fit_the_tables(study):
    path = BENCHMARKS / "studies" / "chemistry.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    keys = [(line["protocol"], line["row"], line["seed"]) for line in lines]
    assert len(set(keys)) == len(keys)
    assert {key[0] for key in keys} <= set(study.PROTOCOLS)
    assert {key[1] for key in keys} <= set(study.TITLES)
