import json
import multiprocessing
import os
import resource
import warnings
from pathlib import Path

import numpy as np
import orjson
import pytest
from pymatgen.core import Lattice, Structure

from cgnn.config import DataConfig, GraphConfig
from cgnn.data import store as module
from cgnn.data.records import Record, SetAside, read
from cgnn.data.store import GraphStore, StoreWriter, cache_folder, content_key, prepare, store_key
from cgnn.errors import DataError
from cgnn.graph.build import GraphBuilder
from cgnn.graph.fields import FIELDS


def crystal(symbol="Cu", a=3.6):
    return Structure(Lattice.cubic(a), [symbol] * 4, [[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]])


def document(name, structure, **values):
    return {"material_id": name, "structure": structure.as_dict(), **values}


@pytest.fixture
def data(tmp_path):
    """Four crystals, one of which has overlapping atoms."""
    overlap = Structure(Lattice.cubic(4), ["Cu", "Cu"], [[0, 0, 0], [0.01, 0, 0]])
    documents = [
        document("a", crystal(), k_vrh=140.0, text="x"),
        document("bad", overlap, k_vrh=1.0),
        document("b", crystal("Al", 4.05), k_vrh=76.0),
        document("c", Structure(Lattice.cubic(2.9), ["Fe"], [[0, 0, 0]]), k_vrh=170.0),
    ]
    path = tmp_path / "crystals.json"
    path.write_bytes(orjson.dumps(documents))
    return DataConfig(path=str(path), cache=str(tmp_path / "cache"))


def assert_equal(store, other):
    assert store.arrays.keys() == other.arrays.keys()
    for name in store.arrays:
        np.testing.assert_array_equal(store.arrays[name], other.arrays[name], strict=True)
    assert store.set_aside == other.set_aside


def test_round_trip_equals_direct_graphs(export, tmp_path):
    data = DataConfig(path=str(export), cache=str(tmp_path))
    store = prepare(data, GraphConfig())
    records = list(read(export))
    assert len(store) == len(records) == 40
    for index, record in enumerate(records):
        direct = GraphBuilder()(record.structure)
        arrays = GraphBuilder().arrays(record.structure)
        stored = store.graph(index)
        for name, field in FIELDS.items():
            np.testing.assert_array_equal(stored[name], arrays[name], strict=True)
            assert stored[name].dtype == field.stored
        assert direct.num_nodes == len(stored["z"])
        assert store.record(index) == (record.material_id, record.source, record.values)


def test_odd_values_survive(tmp_path):
    values = {
        "nan": float("nan"),
        "inf": float("inf"),
        "huge": 10**400,
        "text": 'é"\n\ud800',
        "no": None,
        "list": [1.5],
    }
    values |= {"yes": True, "int": 2**70, "tiny": 5e-324}
    arrays = GraphBuilder().arrays(crystal())
    with StoreWriter(tmp_path / "a", "key") as writer:
        writer.add(Record("ü-1", crystal(), values, "file:1"), arrays)
        writer.add(Record("2", crystal(), {}, "file:2"), arrays)
    store = GraphStore(tmp_path / "a")
    name, source, found = store.record(0)
    assert (name, source) == ("ü-1", "file:1")
    assert np.isnan(found.pop("nan"))
    del values["nan"]
    assert found == values
    assert {key: type(value) for key, value in found.items()} == {key: type(value) for key, value in values.items()}
    assert store.record(1) == ("2", "file:2", {})
    assert store.key == "key"


def test_built_once(data, monkeypatch):
    first = prepare(data, GraphConfig())
    monkeypatch.setattr(module, "StoreWriter", None)  # would fail if they were built again
    second = prepare(data, GraphConfig())
    assert second.path == first.path
    assert_equal(first, second)
    assert [crystal.material_id for crystal in second.set_aside] == ["bad"]
    assert second.set_aside[0].code == "overlap"
    assert second.set_aside[0].stage == "graph"
    assert os.listdir(cache_folder(data)) == [first.path.name]


def test_arrays_are_mapped_not_loaded(data):
    store = prepare(data, GraphConfig())
    for name in FIELDS:
        base = store.arrays[name]
        while not isinstance(base, np.memmap):
            base = base.base
        assert base.mode == "r"
        assert not store.arrays[name].flags.writeable


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("CGNN_CACHE", str(tmp_path / "x"))
    assert cache_folder(DataConfig()) == tmp_path / "x"
    assert cache_folder(DataConfig(cache="y")) == Path("y")
    monkeypatch.delenv("CGNN_CACHE")
    assert cache_folder(DataConfig()) == Path.home() / ".cache" / "cgnn"


def test_key_follows_all_that_matters(data, tmp_path, monkeypatch):
    keys = [store_key(data, GraphConfig())]
    assert store_key(data.model_copy(update={"cache": "elsewhere"}), GraphConfig()) == keys[0]
    for change in ({"k": 8}, {"reach": 1.3}, {"cutoff": 9.0}, {"neighbors": "cgcnn"}, {"max_atoms": 99}):
        keys.append(store_key(data, GraphConfig(**change)))
    for change in ({"format": "mp_json"}, {"id_column": "id"}, {"structure_column": "structure"}):
        keys.append(store_key(data.model_copy(update=change), GraphConfig()))
    with monkeypatch.context() as patch:
        patch.setattr("cgnn.graph.build.SCHEMA", 999)
        keys.append(store_key(data, GraphConfig()))
    with monkeypatch.context() as patch:
        patch.setattr(module, "FORMAT", "cgnn-graphs-999")
        keys.append(store_key(data, GraphConfig()))
    path = Path(data.path)
    renamed = path.rename(path.with_name("other.json"))  # ids may come from the name
    keys.append(store_key(data.model_copy(update={"path": str(renamed)}), GraphConfig()))
    path.write_bytes(renamed.read_bytes().replace(b"140.0", b"141.0"))
    keys.append(store_key(data, GraphConfig()))
    assert len(set(keys)) == len(keys)


def test_key_of_a_folder(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.cif").write_text("a")
    (tmp_path / "sub" / "b.parquet").write_text("b")
    keys = [content_key(tmp_path)]
    assert content_key(tmp_path) == keys[0]
    (tmp_path / "sub" / "b.parquet").write_text("c")  # Parquet folders are read at any depth
    keys.append(content_key(tmp_path))
    (tmp_path / "sub" / "b.parquet").rename(tmp_path / "b.parquet")
    keys.append(content_key(tmp_path))
    (tmp_path / "a.cif").rename(tmp_path / "c.cif")
    keys.append(content_key(tmp_path))
    assert len(set(keys)) == 4
    with pytest.raises(DataError, match="nothing: could not be read: No such file"):
        content_key(tmp_path / "nothing")


def test_changed_data_are_built_again_without_a_warning(data):
    assert prepare(data, GraphConfig()).record(0)[2]["k_vrh"] == 140.0
    path = Path(data.path)
    path.write_bytes(path.read_bytes().replace(b"140.0", b"150.0"))
    assert prepare(data, GraphConfig()).record(0)[2]["k_vrh"] == 150.0


def mutated(content, rng):
    """Return a damaged copy: cut, bit flipped, zeroed, stretch removed, byte changed in the header."""
    changed = bytearray(content)
    size = 8 + int.from_bytes(content[:8], "little")
    kind = rng.integers(7)
    place = int(rng.integers(len(content)))
    if kind == 0:
        del changed[place:]
    elif kind == 1:
        changed[place] ^= 1 << int(rng.integers(8))
    elif kind == 2:
        changed[place:] = bytes(len(changed) - place)
    elif kind == 3:
        del changed[place : place + int(rng.integers(1, 64))]
    elif kind == 4:
        changed[int(rng.integers(size))] = int(rng.integers(256))
    elif kind == 5:
        changed[place:place] = rng.bytes(int(rng.integers(1, 64)))
    else:
        digits = [i for i in range(8, size) if 48 <= content[i] <= 57]
        changed[digits[int(rng.integers(len(digits)))]] = int(rng.integers(48, 58))
    return bytes(changed)


def check_mutations(data, count, rng):
    """Every damaged file is found, with one warning, and built again, or gives the same graphs.

    Nothing is lost by a changed blank of the padding, or the end of an array, which its shape says already.
    """
    good = prepare(data, GraphConfig())
    content = good.path.read_bytes()
    found = 0
    for _ in range(count):
        damaged = mutated(content, rng)
        if damaged == content:
            continue
        good.path.unlink()
        good.path.write_bytes(damaged)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            store = prepare(data, GraphConfig())
        assert_equal(store, good)
        assert len(caught) <= 1
        if caught:
            found += 1
            assert "it is built again" in str(caught[0].message)
            assert good.path.read_bytes() == content
    return found


def test_damage_is_found_and_built_again(data, rng):
    assert check_mutations(data, 60, rng) > 50


@pytest.mark.slow
def test_damage_is_found_and_built_again_often(data, rng):
    assert check_mutations(data, 500, rng) > 430


def rewritten(path, change):
    """Change the header of a file of graphs."""
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    change(header)
    text = json.dumps(header).encode()
    path.unlink()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])


def negative(header):
    header["pos"]["shape"][0] = -5


CHANGES = {
    "version": lambda header: header["__metadata__"].update(format="cgnn-graphs-0"),
    "key": lambda header: header["__metadata__"].update(key="0" * 64),
    "set_aside": lambda header: header["__metadata__"].update(set_aside="[]"),
    "no_checksum": lambda header: header["__metadata__"].pop("checksum"),
    "no_metadata": lambda header: header.pop("__metadata__"),
    "metadata_list": lambda header: header.update(__metadata__=[1]),
    "metadata_number": lambda header: header.update(__metadata__=5),
    "no_array": lambda header: header.pop("pos"),
    "dtype": lambda header: header["pos"].update(dtype="F32"),
    "dtype_list": lambda header: header["pos"].update(dtype=[]),
    "unknown_dtype": lambda header: header["pos"].update(dtype="X9"),
    "negative": negative,
    "huge": lambda header: header["z"].update(shape=[10**15]),
    "beyond": lambda header: header["z"].update(shape=[10**30]),
    "scalar": lambda header: header["z"].update(shape=[]),
    "text_shape": lambda header: header["z"].update(shape="12"),
    "float_shape": lambda header: header["z"].update(shape=[1.5]),
    "empty": lambda header: header["z"].update(shape=[0]),
    "offset": lambda header: header["pos"].update(data_offsets=[8, 8]),
    "far": lambda header: header["pos"].update(data_offsets=[10**18, 10**18]),
    "text_offset": lambda header: header["pos"].update(data_offsets="ab"),
    "swapped": lambda header: header.update(source=header["target"], target=header["source"]),
}


@pytest.mark.parametrize("name", CHANGES)
def test_edited_headers_are_found(data, name):
    good = prepare(data, GraphConfig())
    content = good.path.read_bytes()
    rewritten(good.path, CHANGES[name])
    with pytest.raises(DataError, match=str(good.path)):
        GraphStore(good.path)
    with pytest.warns(UserWarning, match="it is built again"):
        assert_equal(prepare(data, GraphConfig()), good)
    assert good.path.read_bytes() == content


@pytest.mark.parametrize("content", [b"", b"\x00" * 8, b"\xff" * 64, b"\x02" + bytes(7) + b"[]", b"x" * 100])
def test_other_files_are_found(data, content):
    good = prepare(data, GraphConfig())
    good.path.unlink()
    good.path.write_bytes(content)
    with pytest.warns(UserWarning, match="it is built again"):
        assert_equal(prepare(data, GraphConfig()), good)


def test_the_file_of_other_settings_is_not_served(data):
    """A whole file under a wrong name, as a careless copy makes it."""
    other = prepare(data, GraphConfig(k=4))
    good = prepare(data, GraphConfig())
    good.path.unlink()
    good.path.write_bytes(other.path.read_bytes())
    with pytest.warns(UserWarning, match="holds the graphs of something else; it is built again"):
        assert_equal(prepare(data, GraphConfig()), good)


def test_no_usable_crystal_leaves_no_file(tmp_path):
    overlap = Structure(Lattice.cubic(4), ["Cu", "Cu"], [[0, 0, 0], [0.01, 0, 0]])
    path = tmp_path / "bad.json"
    path.write_bytes(orjson.dumps([document("bad-1", overlap)]))
    data = DataConfig(path=str(path), cache=str(tmp_path / "cache"))
    with pytest.raises(DataError, match=r"bad\.json: no crystal can be used \(1 set aside; the first, bad-1: atoms 0"):
        prepare(data, GraphConfig())
    assert os.listdir(tmp_path / "cache") == []


def test_an_error_leaves_nothing(tmp_path):
    path = tmp_path / "cache" / "a"

    def half():
        with StoreWriter(path, "key") as writer:
            writer.add(Record("1", crystal()), GraphBuilder().arrays(crystal()))
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        half()
    assert os.listdir(path.parent) == []


def test_unwritable_cache(data, tmp_path):
    (tmp_path / "file").write_text("")
    blocked = data.model_copy(update={"cache": str(tmp_path / "file" / "cache")})
    with pytest.raises(DataError, match="could not be written: Not a directory"):
        prepare(blocked, GraphConfig())


def test_full_disk(export, tmp_path):
    """The limit of the file size stands for a full disk."""
    data = DataConfig(path=str(export), cache=str(tmp_path))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 14, before[1]))
    try:
        with pytest.raises(DataError, match=r"\.safetensors: could not be written: File too large"):
            prepare(data, GraphConfig())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert os.listdir(tmp_path) == []


def build(path, cache, results):
    store = prepare(DataConfig(path=path, cache=cache), GraphConfig())
    results.put([store.record(i)[0] for i in range(len(store))] + [store.key])


@pytest.mark.parametrize("rounds", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_two_builders_at_once(export, tmp_path, rounds):
    context = multiprocessing.get_context("fork")
    for round in range(rounds):
        cache = tmp_path / str(round)
        results = context.Queue()
        builders = [context.Process(target=build, args=(str(export), str(cache), results)) for _ in range(2)]
        for builder in builders:
            builder.start()
        first, second = results.get(timeout=120), results.get(timeout=120)
        for builder in builders:
            builder.join()
        assert first == second
        assert len(os.listdir(cache)) == 1


def test_duplicates_are_set_aside(tmp_path):
    path = tmp_path / "twice.json"
    documents = [document("a", crystal(), k=1.0), document("a", crystal(), k=1.0), document("a", crystal("Al"), k=2.0)]
    path.write_bytes(orjson.dumps(documents))
    store = prepare(DataConfig(path=str(path), cache=str(tmp_path / "cache")), GraphConfig())
    assert len(store) == 1
    assert [aside.code for aside in store.set_aside] == ["duplicate", "id_conflict"]
    assert all(isinstance(aside, SetAside) and aside.material_id == "a" for aside in store.set_aside)
