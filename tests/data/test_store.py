import errno
import json
import multiprocessing
import os
import resource
import signal
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import orjson
import pytest
from pymatgen.core import Lattice, Structure

from cgnn.config import DataConfig, GraphConfig
from cgnn.data import prepare as module
from cgnn.data.prepare import build, cache_folder, open_prepared, prepare, store_key
from cgnn.data.reading.gate import check_structure
from cgnn.data.records import Record, SetAside, read, without_duplicates
from cgnn.data.store import GraphStore, StoreWriter, assembly, layout
from cgnn.data.store import content as content_module
from cgnn.data.store import mapped as store_module
from cgnn.data.store.chunks import Packer, join, pack
from cgnn.data.store.content import content_key
from cgnn.errors import ConfigError, DataError
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
        direct = GraphBuilder()(record.crystal)
        arrays = GraphBuilder().arrays(record.crystal)
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
        writer.add(Record("ü-1", check_structure(crystal()), values, "file:1"), arrays)
        writer.add(Record("2", check_structure(crystal()), {}, "file:2"), arrays)
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
        base = store.mapped[name]
        while not isinstance(base, np.memmap):
            base = base.base
        assert base.mode == "r"
        assert not store.arrays[name].flags.writeable
        assert np.shares_memory(store.arrays[name], store.mapped[name])


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


@pytest.fixture
def small_blocks(monkeypatch):
    """Checksums of stretches so short that a small file has many."""
    for room in (assembly, layout, store_module):
        monkeypatch.setattr(room, "BLOCK", 256)


def mutated(content, rng):
    """Return a damaged copy: cut, bit flipped, zeroed, stretch removed or put in, stretches swapped, header edited."""
    changed = bytearray(content)
    size = 8 + int.from_bytes(content[:8], "little")
    kind = rng.integers(8)
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
    elif kind == 6:
        first, second = (size + 256 * int(block) for block in rng.integers((len(content) - size) // 256, size=2))
        changed[first : first + 256], changed[second : second + 256] = (
            content[second : second + 256],
            content[first : first + 256],
        )
    else:
        digits = [i for i in range(8, size) if 48 <= content[i] <= 57]
        changed[digits[int(rng.integers(len(digits)))]] = int(rng.integers(48, 58))
    return bytes(changed)


def read_all(data, good, order):
    """Read a data set crystal by crystal, and then whole: both must check what they give."""
    store = prepare(data, GraphConfig())
    for index in order.tolist():
        for name, values in store.graph(index).items():
            np.testing.assert_array_equal(values, good.graph(index)[name], strict=True)
        assert store.record(index) == good.record(index)
    assert_equal(store, good)


def check_mutations(data, count, rng):
    """Every damaged file is found, with one warning, and built again; no wrong graph is served."""
    good = prepare(data, GraphConfig())
    content = good.path.read_bytes()
    done = 0
    while done < count:
        damaged = mutated(content, rng)
        if damaged == content:
            continue
        done += 1
        good.path.unlink()
        good.path.write_bytes(damaged)
        with pytest.warns(UserWarning, match="it is built again") as caught:
            read_all(data, good, rng.permutation(len(good)))
        assert len(caught) == 1
        assert good.path.read_bytes() == content


@pytest.mark.usefixtures("small_blocks")
def test_damage_is_found_and_built_again(data, rng):
    check_mutations(data, 60, rng)


@pytest.mark.slow
@pytest.mark.usefixtures("small_blocks")
def test_damage_is_found_and_built_again_often(data, rng):
    check_mutations(data, 500, rng)


@pytest.mark.usefixtures("small_blocks")
def test_every_block_is_checked_when_it_is_touched(data):
    """A byte changed anywhere is found by the access that reads it, and by no other."""
    good = prepare(data, GraphConfig())
    content = bytearray(good.path.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    end = good.mapped["checksums"].nbytes
    for place in range(start, len(content) - end, 256):
        changed = content.copy()
        changed[place] ^= 1
        good.path.unlink()
        good.path.write_bytes(changed)
        store = GraphStore(good.path)
        found = 0
        for name in store.arrays:
            with suppress(DataError):
                np.testing.assert_array_equal(store.arrays[name], good.arrays[name])
                found += 1
        assert len(FIELDS) < found < len(store.arrays)
        with pytest.raises(DataError, match="damaged: a checksum differs; delete it"):
            GraphStore(good.path).verify_all()
    for place in range(len(content) - end, len(content)):
        changed = content.copy()
        changed[place] ^= 1
        good.path.write_bytes(changed)
        with pytest.raises(DataError, match="the checksums differ from their own"):
            GraphStore(good.path)


@pytest.mark.usefixtures("small_blocks")
def test_only_what_is_touched_is_read(export, tmp_path):
    store = prepare(DataConfig(path=str(export), cache=str(tmp_path)), GraphConfig())
    store = GraphStore(store.path)
    assert not store._sound.any()
    store.verify(np.array([3, 17]))
    some = store._sound.sum()
    assert 0 < some < len(store._sound) / 4
    store.verify(np.array([17, 3, 3]))
    assert store._sound.sum() == some
    store.verify(np.arange(len(store)))
    names = [name for name in FIELDS if not np.array_equal(store.mapped[name], store.arrays[name])]
    assert names == []
    store.verify_all()
    assert store._sound.all()


def test_a_file_that_is_built_again_otherwise_is_not_gone_on_with(data):
    good = prepare(data, GraphConfig())
    damaged = bytearray(good.path.read_bytes())
    damaged[-good.mapped["checksums"].nbytes - 300] ^= 1
    good.path.write_bytes(damaged)
    other = prepare(data, GraphConfig(k=4)).path.read_bytes()
    store = GraphStore(good.path, rebuild=lambda: good.path.write_bytes(other))
    with (
        pytest.warns(UserWarning, match="it is built again"),
        pytest.raises(DataError, match="was built again, but is not the same"),
    ):
        store.verify_all()


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
            writer.add(Record("1", check_structure(crystal())), GraphBuilder().arrays(crystal()))
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
        with pytest.raises(DataError, match=r"\.graphs\.parts: could not be written: File too large"):
            prepare(data, GraphConfig())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert os.listdir(tmp_path) == []


def build_and_tell(path, cache, results):
    store = prepare(DataConfig(path=path, cache=cache), GraphConfig())
    results.put([store.record(i)[0] for i in range(len(store))] + [store.key])


@pytest.mark.parametrize("rounds", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_two_builders_at_once(export, tmp_path, rounds):
    context = multiprocessing.get_context("fork")
    for round in range(rounds):
        cache = tmp_path / str(round)
        results = context.Queue()
        builders = [context.Process(target=build_and_tell, args=(str(export), str(cache), results)) for _ in range(2)]
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


class Piece:
    """A block of crystals in memory."""

    def __init__(self, items):
        self._items = items

    def items(self):
        return self._items


@pytest.fixture
def pieces(monkeypatch, export, tmp_path):
    """Settings of an input that is read in seven pieces, with odd columns, bad crystals and repeated ids in them."""
    items = list(read(export))
    overlap = check_structure(Structure(Lattice.cubic(4), ["Cu", "Cu"], [[0, 0, 0], [0.01, 0, 0]]))
    for place, item in enumerate([*items]):
        items[place] = Record(item.material_id, item.crystal, item.values | {f"new-{place // 9}": place}, item.source)
    items[5] = Record("bad", overlap, {}, "x:5")
    items[20] = Record("bad", overlap, {}, "x:20")
    items[21] = Record(items[2].material_id, items[2].crystal, {}, "x:21")
    items[30] = SetAside("unread", "x:30", "read", "no_structure", "no crystal")
    cut = [Piece(items[at : at + 6]) for at in range(0, len(items), 6)]
    monkeypatch.setattr(module, "blocks", lambda *rest: iter(cut))
    return DataConfig(path=str(export), cache=str(tmp_path / "cache")), items


class Killed(BaseException):
    """Stands for the end of a process: nothing catches it."""


def dying(chunks):
    """Return an engine that ends after some chunks, and the list of the pieces it was asked for."""
    asked = []

    def engine(function, blocks):
        for number, block in enumerate(blocks):
            if number == chunks:
                raise Killed
            asked.append(block)
            yield function(block)

    return engine, asked


def test_interrupted_builds_go_on(pieces, tmp_path):
    data, items = pieces
    whole = prepare(data.model_copy(update={"cache": str(tmp_path / "whole")}), GraphConfig())
    assert len(whole) == 36
    kinds = [aside.code for aside in whole.set_aside]
    assert kinds == ["overlap", "duplicate", "id_conflict", "no_structure"]
    asked = []
    for chunks in (2, 0, 3, 9):
        engine, some = dying(chunks)
        try:
            store = prepare(data, GraphConfig(), engine=engine)
        except Killed:
            asked += some
    assert store.path.read_bytes() == whole.path.read_bytes()
    assert len(asked + some) == 7
    assert [item for block in asked + some for item in block.items()] == items
    assert os.listdir(cache_folder(data)) == [store.path.name]


def test_damaged_journals_are_cut_off(pieces, tmp_path, rng):
    data, _ = pieces
    whole = prepare(data.model_copy(update={"cache": str(tmp_path / "whole")}), GraphConfig())
    cache = cache_folder(data)
    for _ in range(30):
        engine, _ = dying(5)
        with pytest.raises(Killed):
            prepare(data, GraphConfig(), engine=engine)
        (journal,) = cache.iterdir()
        content = bytearray(journal.read_bytes())
        if rng.random() < 0.5:
            del content[int(rng.integers(len(content))) :]
        else:
            content[int(rng.integers(len(content)))] ^= 1 << int(rng.integers(8))
        journal.write_bytes(content)
        engine, asked = dying(99)
        store = prepare(data, GraphConfig(), engine=engine)
        assert store.path.read_bytes() == whole.path.read_bytes()
        assert 2 < len(asked) <= 7
        store.path.unlink()


def test_a_journal_of_something_else_is_not_used(pieces, tmp_path):
    data, _ = pieces
    engine, _ = dying(3)
    path = tmp_path / "x.graphs"
    with pytest.raises(Killed):
        build(path, data, GraphConfig(), engine=engine)
    engine, asked = dying(9)
    build(path, data, GraphConfig(k=4), engine=engine)
    assert len(asked) == 7
    assert json.loads(GraphStore(path).settings)["k"] == 4
    with StoreWriter(path, "key") as writer:
        assert writer.done_chunks == 0


def build_slowly(path, cache, pause):
    def engine(function, blocks):
        for block in blocks:
            time.sleep(pause)
            yield function(block)

    prepare(DataConfig(path=path, cache=cache), GraphConfig(), engine=engine)


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_builders_leave_no_lock(pieces, tmp_path, rng, kills):
    """A builder is killed at some moment, again and again; two others and four readers then find all in order."""
    data, _ = pieces
    whole = prepare(data.model_copy(update={"cache": str(tmp_path / "whole")}), GraphConfig())
    context = multiprocessing.get_context("fork")
    for _ in range(kills):
        builder = context.Process(target=build_slowly, args=(data.path, data.cache, 0.02))
        builder.start()
        time.sleep(float(rng.uniform(0, 0.15)))
        builder.kill()
        builder.join()
    others = [context.Process(target=build_slowly, args=(data.path, data.cache, 0.001)) for _ in range(6)]
    for other in others:
        other.start()
    for other in others:
        other.join(timeout=60)
        assert other.exitcode == 0
    assert os.listdir(data.cache) == [whole.path.name]
    assert prepare(data, GraphConfig()).path.read_bytes() == whole.path.read_bytes()


@pytest.mark.parametrize("moment", ["while assembling", "before tidying"])
def test_what_a_killed_builder_leaves_is_removed(pieces, tmp_path, monkeypatch, moment):
    """Killed while the chunks become a file, or after that: neither the half file nor the journal stays for good."""
    data, _ = pieces
    whole = prepare(data.model_copy(update={"cache": str(tmp_path / "whole")}), GraphConfig())

    def die(*rest):
        os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        if moment == "while assembling":
            patch.setattr(os, "replace", die)
        else:
            patch.setattr("cgnn.data.store.journal.Journal.discard", die)
        builder = multiprocessing.get_context("fork").Process(target=prepare, args=(data, GraphConfig()))
        builder.start()
        builder.join()
    assert builder.exitcode == -signal.SIGKILL
    left = {name.rpartition(".")[2] for name in os.listdir(data.cache)}
    assert left == ({"parts", "tmp"} if moment == "while assembling" else {"parts", "graphs"})
    assert prepare(data, GraphConfig()).path.read_bytes() == whole.path.read_bytes()
    assert os.listdir(data.cache) == [whole.path.name]


def test_a_folder_without_locks(pieces, tmp_path, monkeypatch):
    """As on some cluster file systems: each builder then works for itself."""
    data, _ = pieces

    def no_lock(*rest):
        raise OSError(errno.EOPNOTSUPP, "not supported")

    whole = prepare(data.model_copy(update={"cache": str(tmp_path / "whole")}), GraphConfig())
    monkeypatch.setattr("fcntl.flock", no_lock)
    store = prepare(data, GraphConfig())
    assert store.path.read_bytes() == whole.path.read_bytes()
    assert os.listdir(cache_folder(data)) == [store.path.name]


def test_chunks_in_any_cut_give_the_same_file(pieces, tmp_path):
    data, items = pieces
    whole = prepare(data, GraphConfig())
    chunks = [Packer(GraphConfig())(Piece(items[at : at + 4])) for at in range(0, len(items), 4)]
    with StoreWriter(tmp_path / "joined", whole.key, whole.settings) as writer:
        writer.add_chunk(join(chunks[:6]))
        writer.add_chunk(join(chunks[6:]))
    assert (tmp_path / "joined").read_bytes() == whole.path.read_bytes()
    builder = GraphBuilder()
    with StoreWriter(tmp_path / "single", whole.key, whole.settings) as writer:
        for item in without_duplicates(items):
            if isinstance(item, SetAside):
                writer.skip(item)
            elif item.material_id == "bad":
                writer.skip(whole.set_aside[0])
            else:
                writer.add(item, builder.arrays(item.crystal))
    assert (tmp_path / "single").read_bytes() == whole.path.read_bytes()


def without(field):
    return lambda graph: graph.pop(field)


def with_value(field, place, value):
    def change(graph):
        graph[field] = graph[field].copy()
        graph[field][place] = value

    return change


def longer(field):
    return lambda graph: graph.update({field: np.concatenate([graph[field], graph[field][-1:]])})


WRONG = {
    "missing": (without("reach"), "graph without field 'reach'"),
    "atoms": (longer("pos"), r"field 'pos' has shape \(5, 3\), expected \(4, 3\)"),
    "edges": (longer("target"), r"field 'target' has shape"),
    "lattice": (longer("lattice"), r"field 'lattice' has shape \(2, 3, 3\), expected \(1, 3, 3\)"),
    "shape": (
        lambda graph: graph.update(pos=graph["pos"][:, :2]),
        r"field 'pos' has shape \(4, 2\), expected \(4, 3\)",
    ),
    "beyond": (with_value("source", 3, 4), "field 'source' points outside the crystal"),
    "before": (with_value("target", 0, -1), "field 'target' points outside the crystal"),
    "order": (with_value("target", -1, 0), "field 'target' is not sorted"),
    "position": (with_value("pos", (1, 1), np.nan), "positions or a lattice that are not finite"),
    "cell": (with_value("lattice", (0, 1, 1), np.inf), "positions or a lattice that are not finite"),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_graphs_that_are_not_whole_are_not_written(name, place):
    """Wherever among others the wrong one stands; the others have other sizes."""
    record = Record("a", check_structure(crystal()))
    iron = Structure(Lattice.cubic(2.9), ["Fe"], [[0, 0, 0]])
    graphs = [GraphBuilder().arrays(structure) for structure in (iron, crystal("Al", 4.05), iron)]
    change, message = WRONG[name]
    wrong = GraphBuilder().arrays(crystal())
    change(wrong)
    graphs.insert(place, wrong)
    with pytest.raises(DataError, match=message):
        pack((record, graph) for graph in graphs)
    del graphs[place]
    assert len(pack((record, graph) for graph in graphs).ids) == 3


def test_columns_hold_what_the_records_say(pieces):
    data, _ = pieces
    store = prepare(data, GraphConfig())
    records = [store.record(row)[2] for row in range(len(store))]
    assert store.columns == list(dict.fromkeys(name for record in records for name in record))
    assert store.ids() == [store.record(row)[0] for row in range(len(store))]
    assert store.sources() == [store.record(row)[1] for row in range(len(store))]
    for name in store.columns:
        kinds, values = store.column(name)
        for row, record in enumerate(records):
            value = record.get(name)
            if isinstance(value, bool):
                assert (kinds[row], values[row]) == (3, value)
            elif isinstance(value, float | int):
                assert (kinds[row], values[row]) == (2, value)
            elif value is not None:
                assert kinds[row] == 4
            else:
                assert kinds[row] == (name in record)


def test_a_prepared_file_stands_for_its_input(data, tmp_path):
    path = tmp_path / "set.graphs"
    build(path, data, GraphConfig())
    Path(data.path).unlink()
    prepared = data.model_copy(update={"path": str(path)})
    store = prepare(prepared, GraphConfig())
    assert [store.record(row)[0] for row in range(len(store))] == ["a", "b", "c"]
    with pytest.raises(ConfigError, match=r"graph\.k is 12 there, 8 here; use these"):
        prepare(prepared, GraphConfig(k=8))
    with pytest.raises(DataError, match=r"none\.graphs: could not be read: No such file"):
        prepare(data.model_copy(update={"path": str(tmp_path / "none.graphs")}), GraphConfig())
    damaged = bytearray(path.read_bytes())
    damaged[-100] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(DataError, match=r"set\.graphs: damaged: .*; delete it and prepare the crystals again"):
        open_prepared(path).verify_all()


def test_records_of_a_store_are_those_that_were_read(export, tmp_path):
    store = prepare(DataConfig(path=str(export), cache=str(tmp_path)), GraphConfig())
    for found, record in zip(store.records(), read(export), strict=True):
        assert (found.material_id, found.values, found.source) == (record.material_id, record.values, record.source)
        np.testing.assert_array_equal(found.crystal.z, record.crystal.z)
        np.testing.assert_array_equal(found.crystal.pos, record.crystal.pos)
        np.testing.assert_array_equal(found.crystal.lattice, record.crystal.lattice)
        assert found.digest == record.digest


@pytest.fixture
def old_file(tmp_path):
    path = tmp_path / "input" / "big.json"
    path.parent.mkdir()
    path.write_bytes(bytes(1 << 21))
    return path


def changed_long_ago(monkeypatch):
    monkeypatch.setattr(content_module, "SETTLED", -1)


def test_keys_of_unchanged_files_are_remembered(old_file, tmp_path, monkeypatch):
    changed_long_ago(monkeypatch)
    notes = tmp_path / "notes"
    for path in (old_file, old_file.parent):
        key = content_key(path)
        assert content_key(path, notes) == key
        with monkeypatch.context() as patch:
            patch.setattr(content_module, "_digest", None)  # would fail if it were read again
            assert content_key(path, notes) == key
    assert len(os.listdir(notes)) == 2
    os.utime(old_file)
    key = content_key(old_file, notes)
    old_file.write_bytes(bytes(1 << 21)[:-1] + b"x")
    assert content_key(old_file, notes) == content_key(old_file) != key
    before = old_file.stat()
    old_file.write_bytes(bytes(1 << 21)[:-1] + b"y")
    os.utime(old_file, ns=(before.st_atime_ns, before.st_mtime_ns))  # as some copying programs do
    assert content_key(old_file, notes) == content_key(old_file) != key
    for note in notes.iterdir():
        note.write_text("[1")
    assert content_key(old_file, notes) == content_key(old_file)


def test_keys_of_files_just_changed_are_not_remembered(old_file, tmp_path):
    assert content_key(old_file, tmp_path / "notes") == content_key(old_file)
    assert not (tmp_path / "notes").exists()


def test_keys_are_made_where_they_can_not_be_remembered(old_file, tmp_path, monkeypatch):
    changed_long_ago(monkeypatch)
    (tmp_path / "file").write_text("")
    assert content_key(old_file, tmp_path / "file" / "notes") == content_key(old_file)
