import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from pymatgen.core import Lattice, Structure
from safetensors.torch import save

from cgnn.config import build
from cgnn.data.reading.gate import check_structure
from cgnn.data.records import Record
from cgnn.errors import CheckpointError
from cgnn.model import CrystalGNN
from cgnn.predict import Predictor
from cgnn.train import checkpoint as module
from cgnn.train.checkpoint import (
    MODEL_FILE,
    STATE_FILE,
    VERSION,
    ModelInfo,
    load_model,
    read_tensors,
    save_model,
    write_tensors,
)
from cgnn.train.trust.novelty import Novelty

CRYSTALS = [
    Structure(Lattice.cubic(3.6), ["Cu"] * 4, [[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]),
    Structure(Lattice.cubic(2.9), ["Ni", "Al"], [[0, 0, 0], [0.5, 0.5, 0.5]]),
]
SETTINGS = {
    "targets": [
        {"name": "bulk_modulus", "unit": "GPa", "transform": "log10"},
        {"name": "is_metal", "task": "binary"},
        {"name": "type", "task": "multiclass", "classes": ["a", "b", "c"]},
        {"name": "charge", "level": "atom"},
    ],
    "model": {"width": 4, "depth": 1, "gaussians": 6, "head_width": 4, "elements": ["one_hot"]},
}
INFO = {
    "elements": (13, 28, 29),
    "baselines": {"bulk_modulus": {"value": 100.0, "learned": 2.0}},
    "summary": {"epoch": 3, "val_score": 0.5},
}


@pytest.fixture
def info():
    return ModelInfo(config=build(SETTINGS), **INFO)


@pytest.fixture
def model(info):
    torch.manual_seed(0)
    model = CrystalGNN(info.config.model, info.config.targets)
    model.head("bulk_modulus").fit_scaling(np.array([10.0, 100.0, 300.0]))
    return model.eval()


@pytest.fixture
def path(tmp_path, model, info):
    save_model(tmp_path / MODEL_FILE, [model], info)
    return tmp_path / MODEL_FILE


def predictions(path):
    found = Predictor.load(path, "cpu").predict(CRYSTALS)
    return [np.asarray(value).tolist() for column in found.columns.values() for value in column]


def test_saved_and_loaded_are_equal(path, model, info):
    (loaded,), found = load_model(path)
    assert found == info
    assert not loaded.training
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
        assert loaded.state_dict()[name].dtype == tensor.dtype
    assert [p.requires_grad for p in loaded.parameters()] == [p.requires_grad for p in model.parameters()]
    assert predictions(path) == [
        np.asarray(value).tolist()
        for column in Predictor([model], info, "cpu").predict(CRYSTALS).columns.values()
        for value in column
    ]


def test_double_precision_is_kept(tmp_path, model, info):
    save_model(tmp_path / "a", [model.double()], info)
    (loaded,), _ = load_model(tmp_path / "a")
    assert {p.dtype for p in loaded.parameters()} == {torch.float64}


def test_same_content_same_bytes(path, tmp_path, model, info):
    save_model(tmp_path / "again", [model], info)
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


def mutated(content, rng):
    """Return a damaged copy: cut, bit flipped, stretch zeroed, removed, inserted, header edited."""
    changed = bytearray(content)
    size = 8 + int.from_bytes(content[:8], "little")
    kind, place = rng.integers(8), int(rng.integers(len(content)))
    stretch = int(rng.integers(1, 64))
    if kind == 0:
        del changed[place:]
    elif kind == 1:
        changed[place] ^= 1 << int(rng.integers(8))
    elif kind == 2:
        changed[place : place + stretch] = bytes(stretch)
    elif kind == 3:
        del changed[place : place + stretch]
    elif kind == 4:
        changed[place:place] = rng.bytes(stretch)
    elif kind == 5:
        changed[int(rng.integers(size))] = int(rng.integers(256))
    elif kind == 6:
        digits = [i for i in range(8, size) if 48 <= content[i] <= 57]
        changed[digits[int(rng.integers(len(digits)))]] = int(rng.integers(48, 58))
    else:
        changed[:8] = int(rng.integers(2 ** int(rng.integers(1, 63)))).to_bytes(8, "little")
    return bytes(changed)


def check_mutations(path, count, rng):
    """Every damaged file is refused with a reason, or predicts the same bits."""
    content, expected = path.read_bytes(), predictions(path)
    refused = 0
    for _ in range(count):
        path.write_bytes(mutated(content, rng))
        try:
            found = predictions(path)
        except CheckpointError as error:
            assert str(path) in str(error)  # noqa: PT017 - either outcome is right
            refused += 1
        else:
            assert found == expected
    return refused


def test_damaged_files_are_refused(path, rng):
    assert check_mutations(path, 200, rng) > 170


@pytest.mark.slow
def test_damaged_files_are_refused_often(trained, tmp_path, rng):
    shutil.copy(trained / "best" / MODEL_FILE, tmp_path / MODEL_FILE)
    assert check_mutations(tmp_path / MODEL_FILE, 2000, rng) > 1700


def forged(path, change=lambda content, tensors: None):
    """Write a file with a right checksum whose content is not what `save_model` writes."""
    tensors, content = read_tensors(path)
    change(content, tensors)
    write_tensors(path, tensors, content)


def drop(key):
    return lambda content, tensors: content.pop(key)


def put(key, value):
    return lambda content, tensors: content.update({key: value})


def weight(name, value):
    return lambda content, tensors: tensors.update({name: value})


def setting(section, **values):
    return lambda content, tensors: content["config"][section].update(values)


FIRST = "0.convs.0.target.bias"
FORGERIES = {
    "kind": (put("kind", "state"), "holds a 'state', expected a model"),
    "no kind": (drop("kind"), "holds a None, expected a model"),
    "newer": (put("version", VERSION + 1), rf"model format {VERSION + 1}, this cgnn reads up to {VERSION}"),
    "older": (put("version", 0), "model format 0"),
    "negative": (put("version", -1), "model format -1"),
    "text version": (put("version", "1"), "model format 1"),
    "list version": (put("version", [1]), "model format"),
    "no config": (drop("config"), "not a model this version can read"),
    "config list": (put("config", []), "not a model this version can read"),
    "unknown setting": (setting("model", widht=3), "unknown key"),
    "other width": (setting("model", width=5), "size mismatch"),
    "huge width": (setting("model", width=10**9), "not a model this version can read"),
    "endless width": (setting("model", width=10**30), "not a model this version can read"),
    "other depth": (setting("model", depth=2), "Missing key"),
    "less depth": (setting("model", depth=0), "Unexpected key"),
    "unknown norm": (setting("model", norm="bach"), "unknown normalisation 'bach'; did you mean 'batch'"),
    "elements text": (put("elements", "Cu"), "not a model this version can read"),
    "elements number": (put("elements", 5), "not a model this version can read"),
    "summary list": (put("summary", [1]), "not a model this version can read"),
    "baselines text": (put("baselines", "x"), "not a model this version can read"),
    "calibration text": (put("calibration", "x"), "not a model this version can read"),
    "no calibration": (drop("calibration"), "not a model this version can read"),
    "no members": (drop("members"), "not a model this version can read"),
    "zero members": (put("members", 0), "holds the weights of 1 members, expected 0"),
    "more members": (put("members", 10**12), "holds the weights of 1 members, expected 1000000000000"),
    "members text": (put("members", "1"), "holds the weights of 1 members, expected '1'"),
    "members true": (put("members", True), "holds the weights of 1 members, expected True"),
    "another member": (weight(FIRST.replace("0.", "1.", 1), torch.zeros(8)), "holds the weights of 2 members"),
    "half a member": (
        lambda content, tensors: (
            content.update(members=2),
            tensors.update({FIRST.replace("0.", "1.", 1): torch.zeros(8)}),
        ),
        "Missing key",
    ),
    "member of another precision": (
        lambda content, tensors: (
            content.update(members=2),
            tensors.update({n.replace("0.", "1.", 1): t.double() for n, t in tensors.items() if n[0] == "0"}),
        ),
        r"1\..* holds numbers of another type",
    ),
    "member by another name": (
        lambda content, tensors: (
            content.update(members=2),
            tensors.update({n.replace("0.", "01.", 1): t for n, t in tensors.items()}),
        ),
        "Missing key",
    ),
    "infinite reference": (
        weight("reference.a", torch.tensor([torch.inf])),
        r"reference\.a holds numbers that are not",
    ),
    "missing tensor": (lambda content, tensors: tensors.pop(FIRST), "Missing key"),
    "further tensor": (weight("0.evil", torch.zeros(1)), "Unexpected key"),
    "foreign tensor": (weight("evil", torch.zeros(1)), "holds the weights of 2 members, expected 1"),
    "shape": (weight(FIRST, torch.zeros(3)), "size mismatch"),
    "nan": (weight(FIRST, torch.full((8,), torch.nan)), f"{FIRST} holds numbers that are not finite"),
    "inf": (weight(FIRST, torch.full((8,), torch.inf)), f"{FIRST} holds numbers that are not finite"),
    "dtype": (weight(FIRST, torch.zeros(8, dtype=torch.int32)), "not a model this version can read"),
    "half": (weight(FIRST, torch.zeros(8, dtype=torch.float16)), "holds numbers of another type"),
    "complex": (weight(FIRST, torch.zeros(8, dtype=torch.complex64)), "holds numbers of another type"),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_files_that_do_not_fit_are_refused(path, name):
    change, message = FORGERIES[name]
    forged(path, change)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_model(path)
    assert str(path) in str(caught.value)


def test_unchanged_forgery_loads(path):
    forged(path)
    load_model(path)


DESCRIPTIONS = ["[]", "5", "null", "{", '{"a":1', "[" * 100_000, '{"content": {}, "checksum": 5}', '{"content": {}}']


@pytest.mark.parametrize("text", [None, "", *DESCRIPTIONS], ids=lambda text: str(text)[:12])
def test_foreign_safetensors(tmp_path, text):
    path = tmp_path / "a.safetensors"
    path.write_bytes(save({"a": torch.zeros(2)}, None if text is None else {"cgnn": text}))
    with pytest.raises(CheckpointError, match=r"damaged or not a file of cgnn|checksum differs"):
        load_model(path)


@pytest.mark.parametrize("content", [[], 5, None, "text", {"kind": float("nan")}, {}], ids=str)
def test_description_that_is_none(path, content):
    tensors, _ = read_tensors(path)
    write_tensors(path, tensors, content)
    with pytest.raises(CheckpointError, match=r"its description is no mapping|expected a model"):
        load_model(path)


def test_a_file_without_tensors(path):
    _, content = read_tensors(path)
    write_tensors(path, {}, content)
    with pytest.raises(CheckpointError, match="Missing key"):
        load_model(path)


def test_several_members_and_a_reference(tmp_path, model, info):
    """All come back in their order; the prediction is their mean on the learned scale."""
    torch.manual_seed(1)
    twin = CrystalGNN(info.config.model, info.config.targets).eval()
    features = np.random.default_rng(0).normal(size=(120, info.config.model.width))
    reference = Novelty.fit(features).to_tensors()
    extended = dataclasses.replace(info, reference=reference)
    save_model(tmp_path / "a.safetensors", [model, twin], extended)
    members, found = load_model(tmp_path / "a.safetensors")
    assert found == extended
    assert found.reference.keys() == reference.keys()
    assert all(torch.equal(found.reference[name], tensor) for name, tensor in reference.items())
    for member, expected in zip(members, (model, twin), strict=True):
        assert not member.training
        for name, tensor in expected.state_dict().items():
            assert torch.equal(member.state_dict()[name], tensor)
    together = Predictor.load(tmp_path / "a.safetensors", "cpu").predict(CRYSTALS)
    first, second = (Predictor([member], info, "cpu").predict(CRYSTALS) for member in (model, twin))
    moduli = np.sqrt(first["bulk_modulus"] * second["bulk_modulus"])  # the mean of logarithms
    np.testing.assert_allclose(together["bulk_modulus"], moduli, rtol=1e-12)
    np.testing.assert_allclose(together["is_metal"], (first["is_metal"] + second["is_metal"]) / 2, rtol=1e-12)
    np.testing.assert_allclose(together["type_p_b"], (first["type_p_b"] + second["type_p_b"]) / 2, rtol=1e-12)
    np.testing.assert_allclose(together["charge"][0], (first["charge"][0] + second["charge"][0]) / 2, rtol=1e-12)


def test_missing_files(tmp_path, path):
    with pytest.raises(CheckpointError, match="nothing: no such file"):
        load_model(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="no such file"):
        load_model(tmp_path)
    with pytest.raises(CheckpointError, match="no model found"):
        Predictor.load(tmp_path / "nothing")


def test_a_state_is_no_model(trained):
    with pytest.raises(CheckpointError, match="holds a 'state', expected a model"):
        load_model(trained / "last" / STATE_FILE)


def test_older_versions_are_upgraded(path, monkeypatch):
    """The way a later version goes: each step turns description and tensors of one version into the next one's."""

    def doubled(content, tensors):
        return {**content, "elements": [1]}, {**tensors, FIRST: 2 * tensors[FIRST]}

    bias = read_tensors(path)[0][FIRST]
    monkeypatch.setattr(module, "VERSION", VERSION + 2)
    monkeypatch.setitem(module.UPGRADES, VERSION, lambda content, tensors: ({**content, "note": ["first"]}, tensors))
    with pytest.raises(CheckpointError, match=r"not a model this version can read|model format"):
        load_model(path)
    monkeypatch.setitem(module.UPGRADES, VERSION + 1, doubled)
    (member,), found = load_model(path)
    assert found.elements == (1,)
    assert torch.equal(member.convs[0].target.bias, 2 * bias)


def test_sidecars_are_not_read(path):
    expected = predictions(path)
    for name in ("model.pkl", "model.pt", "config.yaml", "data.pkl", "__init__.py"):
        (path.parent / name).write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    assert predictions(path.parent) == expected


def test_text_of_the_header_is_json(path):
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    assert set(header["__metadata__"]) == {"cgnn"}
    description = json.loads(header["__metadata__"]["cgnn"])
    assert set(description) == {"checksum", "content"}
    assert set(description["content"]) == {
        "kind", "version", "graph_schema", "members", "config", "elements", "baselines", "summary", "source",
        "calibration", "versions",
    }  # fmt: skip


def test_a_model_of_other_graphs_is_refused(path, monkeypatch):
    # Their meaning has changed, so the numbers would be wrong without a sign of it.
    monkeypatch.setattr("cgnn.train.checkpoint.SCHEMA", 99)
    with pytest.raises(CheckpointError, match="graphs of schema 1, this cgnn builds 99"):
        load_model(path)


@pytest.mark.parametrize("value", [float("inf"), float("nan"), "x", None])
def test_odd_baselines_are_refused_when_used(path, value):
    forged(path, put("baselines", {"bulk_modulus": {"value": value, "learned": 2.0}}))
    labelled = [
        Record(str(row), check_structure(crystal), {"bulk_modulus": 100.0}) for row, crystal in enumerate(CRYSTALS)
    ]
    with pytest.raises(CheckpointError, match="baseline: expected numbers"):
        Predictor.load(path, "cpu").evaluate(labelled)


GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize("name", sorted(p.name for p in GOLDEN.glob("*.safetensors")))
def test_models_of_earlier_releases_predict_the_same(name):
    """Regenerate after a change of the format: ``python tests/golden/make.py``, and keep the old files."""
    stored = json.loads((GOLDEN / name).with_suffix(".json").read_text())
    crystals = [Structure(Lattice(entry["lattice"]), entry["species"], entry["coords"]) for entry in stored["crystals"]]
    predictor = Predictor.load(GOLDEN / name, "cpu")
    found = predictor.predict(crystals)
    assert found.units == stored["units"]
    assert found.ids == [f"crystal-{row}" for row in range(len(crystals))]
    # later releases may add columns
    assert [column for column in found.columns if column in stored["predictions"]] == list(stored["predictions"])
    for column, values in stored["predictions"].items():
        if isinstance(values[0], str):
            assert list(found[column]) == values
            continue
        for value, expected in zip(found[column], values, strict=True):
            np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_there_is_a_golden_model_of_this_version():
    versions = {read_tensors(path)[1]["version"] for path in GOLDEN.glob("*.safetensors")}
    assert versions == set(range(1, VERSION + 1))
