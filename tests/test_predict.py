import copy
import csv
import gzip
import json
import math
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import sklearn.metrics as reference
from pymatgen.core import Lattice, Structure

from cgnn.config import build
from cgnn.data.items import Finished
from cgnn.data.reading.gate import check_structure
from cgnn.data.records import Record, SetAside, from_structures, read
from cgnn.errors import CheckpointError, ConfigError, DataError
from cgnn.predict import Predictor
from cgnn.predict.forward import Building, Forward, Network
from cgnn.train.run import Run, train

ROOT = Path(__file__).parents[1]
NAMES = ("bulk_modulus", "shear_modulus")
OVERLAP = Structure(Lattice.cubic(4), ["Cu", "Cu"], [[0, 0, 0], [0.01, 0, 0]])
DISORDERED = Structure(Lattice.cubic(3.6), [{"Cu": 0.5, "Ni": 0.5}], [[0, 0, 0]])


@pytest.fixture(scope="module")
def predictor(trained):
    return Predictor.load(trained, "cpu")


@pytest.fixture(scope="module")
def records(export):
    return list(read(export))


@pytest.fixture(scope="module")
def structures(records):
    return [record.structure for record in records]


@pytest.fixture(scope="module")
def expected(predictor, structures):
    return predictor.predict(structures)


def assert_close(found, expected, rows=slice(None)):
    for name in NAMES:
        np.testing.assert_allclose(found[name], np.asarray(expected[name])[rows], rtol=1e-5)


# What may be given


def test_many_structures(expected, structures):
    assert len(expected) == 40
    assert expected.ids == [f"crystal-{row}" for row in range(40)]
    assert expected.units == dict.fromkeys(NAMES, "GPa")
    assert expected.set_aside == []
    assert set(expected.columns) == set(NAMES)
    for name in NAMES:
        assert expected[name].shape == (40,)
        assert (expected[name] > 0).all()  # GPa, not its logarithm
        assert np.median(expected[name]) > 5


def test_forms_of_crystals(predictor, structures, expected):
    from pymatgen.io.ase import AseAtomsAdaptor

    some = structures[:5]
    atoms = [AseAtomsAdaptor.get_atoms(structure) for structure in some]
    for crystals in (some, tuple(some), iter(some), pd.Series(some, index=list("edcba")), atoms):
        assert_close(predictor.predict(crystals), expected, slice(5))
    for crystal in (some[3], atoms[3]):
        assert_close(predictor.predict(crystal), expected, slice(3, 4))
    single = predictor.predict_structure(some[3])
    assert set(single) == set(NAMES)
    assert single["bulk_modulus"] == pytest.approx(expected["bulk_modulus"][3], rel=1e-5)


def test_paths(predictor, export, structures, expected, records, tmp_path):
    found = predictor.predict(export)
    assert found.ids == [record.material_id for record in records]
    assert_close(found, expected)
    assert_close(predictor.predict(str(export)), expected)
    for row, structure in enumerate(structures[:3]):
        structure.to(filename=str(tmp_path / f"c{row}.cif"))
    found = predictor.predict(tmp_path)
    assert found.ids == ["c0", "c1", "c2"]
    assert_close(found, expected, slice(3))
    assert_close(predictor.predict(tmp_path / "c1.cif"), expected, slice(1, 2))


def test_ids(predictor, structures):
    assert predictor.predict(structures[:2], ids=["a", "b"]).ids == ["a", "b"]
    for ids, message in ((["a"], "there are only 1 ids"), (["a", "b", "c"], "more ids than structures")):
        with pytest.raises(DataError, match=message):
            predictor.predict(structures[:2], ids=ids)


def test_inputs_are_not_changed(predictor, structures):
    before = [structure.as_dict() for structure in structures]
    decorated = structures[0].copy(site_properties={"magmom": [1.0] * len(structures[0])})
    kept = decorated.as_dict()
    predictor.predict([*structures, decorated])
    assert [structure.as_dict() for structure in structures] == before
    assert decorated.as_dict() == kept


def test_nothing_given(predictor, tmp_path):
    found = predictor.predict([])
    assert len(found) == 0
    assert found.to_frame().columns.tolist() == ["material_id", "flags"]
    with pytest.raises(DataError, match="no crystals were given"):
        predictor.write([], tmp_path / "a.csv")
    with pytest.raises(DataError, match="no crystals were given"):
        predictor.evaluate([])
    assert os.listdir(tmp_path) == []


# Neither batch nor order matters


def piecewise(predictor, structures, monkeypatch, limit):
    with monkeypatch.context() as patch:
        patch.setattr("cgnn.predict.forward.EDGES_PER_BATCH", limit)
        pieces = list(predictor.stream(from_structures(structures)))
        return pieces, predictor.predict(structures)


@pytest.mark.parametrize("limit", [1, 150, 1000, 10**9])
def test_size_of_batches_does_not_matter(predictor, structures, expected, monkeypatch, limit):
    pieces, found = piecewise(predictor, structures, monkeypatch, limit)
    assert len(pieces) == 40 if limit == 1 else len(pieces) < 40
    assert [name for piece in pieces for name in piece.ids] == expected.ids
    assert_close(found, expected)


def test_order_does_not_matter(predictor, structures, expected, rng):
    for order in (np.arange(40)[::-1], rng.permutation(40)):
        assert_close(predictor.predict([structures[row] for row in order]), expected, order)


@pytest.mark.slow
def test_batch_and_order_do_not_matter_for_real_crystals(predictor, real_data, monkeypatch, rng):
    structures = [item.structure for item, _ in zip(read(real_data / "elasticity.json.gz"), range(500), strict=False)]
    expected = predictor.predict(structures)
    for limit in (1, 2000, 20_000, 10**9):
        assert_close(piecewise(predictor, structures, monkeypatch, limit)[1], expected)
    order = rng.permutation(500)
    assert_close(predictor.predict([structures[row] for row in order]), expected, order)


def test_same_as_the_run_itself(predictor, trained, export, records):
    """The table that training leaves and a prediction of the same crystals agree."""
    rows = list(csv.DictReader((trained / "predictions.csv").read_text().splitlines()))
    found = predictor.predict(export)
    place = {name: row for row, name in enumerate(found.ids)}
    for name in NAMES:
        values = [found[name][place[row["material_id"]]] for row in rows]
        np.testing.assert_allclose(values, [float(row[name]) for row in rows], rtol=1e-5)


# What to know of a prediction


def test_elements_unseen_in_training(predictor, structures):
    known = predictor.predict(structures)
    assert known.flags == [""] * 40
    strange = [Structure(Lattice.cubic(3.0), [symbol], [[0, 0, 0]]) for symbol in ("W", "U", "Cu", "Fr")]
    strange.append(Structure(Lattice.cubic(3.0), ["W", "Cu", "O"], [[0, 0, 0], [0.5, 0.5, 0], [0.5, 0.5, 0.5]]))
    found = predictor.predict(strange)
    text = "elements not in training: "
    assert found.flags == [f"{text}W", f"{text}U", "", f"{text}Fr", f"{text}O W"]
    assert np.isfinite(found["bulk_modulus"]).all()


def test_bad_crystals_are_set_aside(predictor, structures, expected):
    given = [OVERLAP, *structures[:3], DISORDERED, *structures[3:], "no crystal", None]
    found = predictor.predict(given)
    assert [aside.material_id for aside in found.set_aside] == ["crystal-0", "crystal-4", "crystal-42", "crystal-43"]
    assert [aside.code for aside in found.set_aside[:2]] == ["overlap", "disordered"]
    assert all(aside.reason and aside.stage for aside in found.set_aside)
    assert found.ids == [f"crystal-{row}" for row in range(44) if row not in (0, 4, 42, 43)]
    assert_close(found, expected)


def test_one_bad_crystal(predictor):
    with pytest.raises(DataError, match=r"atoms 0 and 1 .* nearer than"):
        predictor.predict_structure(OVERLAP)
    found = predictor.predict([OVERLAP])
    assert len(found) == 0
    assert len(found.set_aside) == 1


# Tables


def test_frame(expected):
    frame = expected.to_frame()
    assert frame.columns.tolist() == ["material_id", *NAMES, "flags"]
    assert frame.attrs["units"] == dict.fromkeys(NAMES, "GPa")
    np.testing.assert_array_equal(frame["bulk_modulus"], expected["bulk_modulus"])
    assert frame["material_id"].tolist() == expected.ids


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_written_tables(predictor, structures, expected, tmp_path, monkeypatch, ending):
    monkeypatch.setattr("cgnn.predict.forward.EDGES_PER_BATCH", 300)
    path = tmp_path / f"out.{ending}"
    strange = Structure(Lattice.cubic(3.0), ["W"], [[0, 0, 0]])
    rows, aside, flags = predictor.write(from_structures([OVERLAP, *structures, strange]), path)
    assert (rows, len(aside), flags) == (41, 1, {"elements not in training: W": ["crystal-41"]})
    frame = pd.read_csv(path, keep_default_na=False) if ending == "csv" else pd.read_parquet(path)
    assert frame.columns.tolist() == ["material_id", *NAMES, "flags"]
    assert frame["material_id"].tolist() == [f"crystal-{row}" for row in range(1, 42)]
    for name in NAMES:
        np.testing.assert_allclose(frame[name][:40], expected[name], rtol=1e-5)
    assert frame["flags"].tolist() == [""] * 40 + ["elements not in training: W"]
    (listed,) = csv.DictReader((tmp_path / "out.set_aside.csv").read_text().splitlines())
    assert listed["material_id"] == "crystal-0"
    assert listed["code"] == "overlap"
    if ending == "csv":
        assert json.loads((tmp_path / "out.csv.units.json").read_text()) == dict.fromkeys(NAMES, "GPa")
    else:
        assert pq.read_schema(path).field("bulk_modulus").metadata == {b"unit": b"GPa"}
    predictor.write(from_structures(structures), path)
    assert not (tmp_path / "out.set_aside.csv").exists()


def test_only_bad_crystals(predictor, tmp_path):
    with pytest.raises(DataError, match="none of the 2 crystals can be used; the first, crystal-0: atoms 0 and 1"):
        predictor.write(from_structures([OVERLAP, DISORDERED]), tmp_path / "out.csv")
    assert os.listdir(tmp_path) == ["out.set_aside.csv"]
    assert len((tmp_path / "out.set_aside.csv").read_text().splitlines()) == 3


def test_other_endings_are_told_before_work(predictor, tmp_path):
    def never():
        raise AssertionError("was read")
        yield

    with pytest.raises(DataError, match=r"tables are written as \.csv or \.parquet, got '\.xlsx'"):
        predictor.write(never(), tmp_path / "out.xlsx")


# Scores


def test_scores_by_hand(predictor, records, expected, trained):
    result = predictor.evaluate(records)
    for name in NAMES:
        truth = np.array([record.values[f"{name}.vrh"] for record in records])
        guess = expected[name]
        np.testing.assert_array_equal(result.truth[name], truth)
        by_hand = {
            "n": 40,
            "mae": np.abs(guess - truth).mean(),
            "rmse": np.sqrt(((guess - truth) ** 2).mean()),
            "r2": reference.r2_score(truth, guess),
            "mae_log10": np.abs(np.log10(guess) - np.log10(truth)).mean(),
            "rmse_log10": np.sqrt(((np.log10(guess) - np.log10(truth)) ** 2).mean()),
            "r2_log10": reference.r2_score(np.log10(truth), np.log10(guess)),
        }
        split = Run.load(trained).split
        seen = np.array([r.values[f"{name}.vrh"] for r in records if r.material_id in set(split.train)])
        by_hand["baseline_mae"] = np.abs(truth - seen.mean()).mean()
        by_hand["baseline_mae_log10"] = np.abs(np.log10(truth) - np.log10(seen).mean()).mean()
        assert result.metrics[name] == pytest.approx(by_hand, rel=1e-5)


def test_scores_skip_what_has_no_label(predictor, records):
    given = [
        Record("none", records[0].crystal, {"bulk_modulus.vrh": None}),
        Record("bad", records[1].crystal, {"bulk_modulus.vrh": "soft"}),
        Record("half", records[2].crystal, {"bulk_modulus.vrh": 50.0}),
        SetAside("gone", "x:1", "read", "bad_cif", "no cell"),
        *records[3:6],
    ]
    result = predictor.evaluate(given)
    assert [(a.material_id, a.code) for a in result.predictions.set_aside] == [
        ("none", "no_label"), ("bad", "bad_label"), ("gone", "bad_cif"),
    ]  # fmt: skip
    assert result.predictions.ids == ["half", *(record.material_id for record in records[3:6])]
    assert result.metrics["bulk_modulus"]["n"] == 4
    assert result.metrics["shear_modulus"]["n"] == 3
    assert math.isnan(result.truth["shear_modulus"][0])


def test_evaluation_without_labels(predictor, structures):
    with pytest.raises(DataError, match=r"none of the 40 crystals .* no value of bulk_modulus\.vrh, shear_modulus"):
        predictor.evaluate(from_structures(structures))


# Several tasks at once


SYSTEMS = ["fcc", "other"]
TARGETS = [
    {"name": "K", "column": "bulk_modulus.vrh", "unit": "GPa", "transform": "log10"},
    {"name": "energy", "column": "energy_per_atom", "unit": "eV/atom"},
    {"name": "is_stiff", "task": "binary"},
    {"name": "type", "task": "multiclass", "classes": SYSTEMS},
    {"name": "volume", "column": "site_volume", "level": "atom", "unit": "Å³"},
]


@pytest.fixture(scope="module")
def several(embedded_documents, tmp_path_factory):
    """A run for five targets of four kinds, each of them unknown for some crystals."""
    documents = []
    for row, document in enumerate(embedded_documents[::12][:40]):
        document = {**document, "is_stiff": document["bulk_modulus"]["vrh"] > 80}
        document["type"] = "fcc" if "fcc" in document["material_id"] else "other"
        sites = len(document["structure"]["sites"])
        document["site_volume"] = [document["volume"] / sites + atom for atom in range(sites)]
        gap = ("bulk_modulus", "energy_per_atom", "is_stiff", "type", "site_volume")[row % 5]
        document[gap] = None if gap != "bulk_modulus" else {"vrh": None}
        documents.append(document)
    folder = tmp_path_factory.mktemp("several")
    (folder / "export.json").write_text(json.dumps(documents))
    settings = {
        "targets": TARGETS,
        "data": {"path": str(folder / "export.json"), "cache": str(folder), "split": {"val": 0.2, "test": 0.2}},
        "model": {"width": 8, "depth": 1, "gaussians": 8, "head_width": 8},
        "train": {"epochs": 3, "batch_size": 4, "threads": 1, "device": "cpu"},
    }
    run = train(build(settings), folder / "run")
    return run, Predictor.load(folder / "run", "cpu"), folder / "export.json", documents


def test_several_tasks_are_trained(several):
    run, _, _, _ = several
    assert set(run.metrics["val"]) == {"K", "energy", "is_stiff", "type", "volume"}
    assert all(math.isfinite(value) for row in run.history for value in row.values())
    rows = list(csv.DictReader((run.folder / "predictions.csv").read_text().splitlines()))
    assert len(rows) == 16
    assert all(row["type"] in SYSTEMS for row in rows)
    assert all(0 <= float(row["is_stiff"]) <= 1 for row in rows)
    for row in rows:
        assert len(json.loads(row["volume"])) == len(json.loads(row["volume_true"]))


def test_several_tasks_are_predicted(several):
    _, predictor, path, documents = several
    found = predictor.predict(path)
    assert list(found.columns) == ["K", "energy", "is_stiff", "type", "type_p_fcc", "type_p_other", "volume"]
    assert found.units == {"K": "GPa", "energy": "eV/atom", "is_stiff": "", "type": "", "volume": "Å³"}
    np.testing.assert_allclose(found["type_p_fcc"] + found["type_p_other"], 1.0, rtol=1e-12)
    likeliest = np.where(found["type_p_fcc"] > found["type_p_other"], "fcc", "other")
    assert list(found["type"]) == list(likeliest)
    assert [len(values) for values in found["volume"]] == [len(d["structure"]["sites"]) for d in documents]
    single = predictor.predict_structure(Structure.from_dict(documents[7]["structure"]))
    np.testing.assert_allclose(single["volume"], found["volume"][7], rtol=1e-5)
    assert single["type"] == found["type"][7]


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_several_tasks_are_written(several, tmp_path, monkeypatch, ending):
    _, predictor, path, _ = several
    monkeypatch.setattr("cgnn.predict.forward.EDGES_PER_BATCH", 500)
    predictor.write(read(path), tmp_path / f"out.{ending}")
    found = predictor.predict(path)
    frame = pd.read_csv(tmp_path / "out.csv") if ending == "csv" else pd.read_parquet(tmp_path / "out.parquet")
    assert frame["type"].tolist() == list(found["type"])
    for row, values in enumerate(frame["volume"]):
        values = json.loads(values) if ending == "csv" else values
        np.testing.assert_allclose(values, found["volume"][row], rtol=1e-5)


def test_several_tasks_are_scored(several):
    _, predictor, path, documents = several
    result = predictor.evaluate(read(path))
    assert len(result.predictions) == 40
    found = result.predictions
    assert [result.metrics[t["name"]]["n"] for t in TARGETS[:4]] == [32] * 4
    volumes = [np.array(d["site_volume"]) for d in documents if d["site_volume"]]
    guesses = [values for values, d in zip(found["volume"], documents, strict=True) if d["site_volume"]]
    assert result.metrics["volume"]["n"] == sum(map(len, volumes))
    by_hand = np.abs(np.concatenate(volumes) - np.concatenate(guesses)).mean()
    assert result.metrics["volume"]["mae"] == pytest.approx(by_hand, rel=1e-6)
    known = [row for row, d in enumerate(documents) if d["is_stiff"] is not None]
    called = found["is_stiff"][known] >= 0.5
    assert result.metrics["is_stiff"]["accuracy"] == np.mean(called == [documents[row]["is_stiff"] for row in known])
    known = [row for row, d in enumerate(documents) if d["type"] is not None]
    right = [found["type"][row] == documents[row]["type"] for row in known]
    assert result.metrics["type"]["accuracy"] == np.mean(right)


# Models


def test_places_of_a_model(trained, expected, structures):
    for path in (trained, str(trained), trained / "best", trained / "best" / "model.safetensors"):
        assert_close(Predictor.load(path, "cpu").predict(structures), expected)
    with pytest.raises(CheckpointError, match="no model found"):
        Predictor.load(trained / "last")


def test_devices(trained, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert Predictor.load(trained, "auto").device.type == "cpu"
    with pytest.raises(ConfigError, match="torch sees no CUDA device"):
        Predictor.load(trained, "cuda")
    with pytest.raises(ConfigError, match="device 'gpu': expected auto, cpu or cuda"):
        Predictor.load(trained, "gpu")


def test_graphs_are_those_of_training(trained, small_settings, structures, tmp_path):
    """There is no way to predict with other neighbours than the model was trained with."""
    values = json.loads(json.dumps(small_settings))
    values["graph"] = {"neighbors": "radius", "cutoff": 4.0}
    train(build(values), tmp_path / "run")
    assert Predictor.load(tmp_path / "run", "cpu").builder.settings == build(values).graph


# Memory


def repeated(structures, count):
    for number in range(count):
        yield Record(f"r-{number}", check_structure(structures[number % len(structures)]))


def test_stream_does_not_accumulate(predictor, structures, monkeypatch):
    """What is alive while the last crystals are predicted is what was alive in the first ones."""
    monkeypatch.setattr("cgnn.predict.forward.EDGES_PER_BATCH", 2000)
    for _ in predictor.stream(repeated(structures, 200)):
        pass
    alive = []
    tracemalloc.start()
    try:
        for piece in predictor.stream(repeated(structures, 2000)):
            del piece
            alive.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert len(alive) > 30
    assert np.median(alive[-10:]) - np.median(alive[5:15]) < 200_000


def test_little_is_read_ahead(predictor, structures, monkeypatch):
    monkeypatch.setattr("cgnn.predict.predictor._LOOSE", 2)
    given = []

    def noted():
        for number, record in enumerate(repeated(structures, 10)):
            given.append(number)
            yield record

    stream = predictor.stream(noted())
    next(stream)
    assert len(given) == 2


LONG = """
import resource, sys
from cgnn.data.records import read, without_duplicates
from cgnn.predict import Predictor
rows, aside, _ = Predictor.load(sys.argv[1], "cpu").write(without_duplicates(read(sys.argv[2])), sys.argv[3])
print(rows, len(aside), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def peak_of(trained, documents, count, folder):
    """Return the largest memory (MiB) of a process that predicts a file of so many crystals."""
    path = folder / f"{count}.jsonl.gz"
    with gzip.open(path, "wt", compresslevel=1) as handle:
        for number in range(count):
            document = documents[number % len(documents)]
            handle.write(json.dumps({"material_id": f"m-{number}", "structure": document["structure"]}) + "\n")
    command = [sys.executable, "-c", LONG, str(trained), str(path), str(folder / f"{count}.csv")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    found = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    rows, aside, peak = map(int, found.stdout.split())
    assert (rows, aside) == (count, 0)
    with open(folder / f"{count}.csv") as handle:
        assert sum(1 for _ in handle) == count + 1
    return peak / 1024


@pytest.mark.slow
def test_memory_of_100_000_crystals(trained, embedded_documents, tmp_path):
    assert peak_of(trained, embedded_documents, 100_000, tmp_path) < 2000


@pytest.mark.slow
def test_memory_does_not_grow(trained, embedded_documents, tmp_path):
    few, many = (peak_of(trained, embedded_documents, count, tmp_path) for count in (2000, 20_000))
    assert many - few < 50
    assert many < 1536


def test_members_travel_to_workers_and_their_spread_comes_back(records):
    """As a worker gets them: the numbers on the learned scale stand beside the columns, atoms by crystal."""
    path = Path(__file__).parent / "golden" / "model-2.safetensors"
    predictor = Predictor.load(path, "cpu")
    first, second = predictor.members
    assert first is not second
    network = copy.copy(Network(predictor.members, predictor.info.elements, predictor.confidence))
    (piece,) = Forward(Building(predictor.info.config.graph), network)(Finished(records[:4]))
    alone = [Predictor([member], predictor.info, "cpu").predict(_structures(records[:4])) for member in (first, second)]
    assert set(piece.learned) == {"bulk_modulus", "energy", "charge"}
    logs = np.log10([each["bulk_modulus"] for each in alone])
    learned = piece.learned["bulk_modulus"]
    np.testing.assert_allclose(learned["value"], logs.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(learned["variance_between"], logs.var(axis=0, ddof=1), rtol=1e-4)
    np.testing.assert_allclose(piece.columns["bulk_modulus"], 10 ** learned["value"], rtol=1e-12)
    assert not learned["scale_within"].any()
    for row, record in enumerate(records[:4]):
        charges = np.array([each["charge"][row] for each in alone])
        assert piece.learned["charge"]["value"][row].shape == (len(record.crystal),)
        np.testing.assert_allclose(piece.learned["charge"]["variance_between"][row], charges.var(0, ddof=1), rtol=1e-4)


def _structures(records):
    return [record.structure for record in records]
