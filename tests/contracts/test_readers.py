"""Every reader gives the same records for the same crystals, streams, and loses only what is bad."""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
import pickle
import sys
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pymatgen.core import Structure

from cgnn.config import DataConfig, GraphConfig
from cgnn.data.prepare import build
from cgnn.data.records import READERS, Record, SetAside, blocks, parse, read

VALUES = [120.5, None, 7.25]
Document = dict[str, Any]
Writer = Callable[[Path, list[Document]], Path]


@pytest.fixture(scope="module")
def crystals(embedded_documents: list[Document]) -> list[Document]:
    """Three crystals under ids of their own, as documents with one (nested) property."""
    chosen = [embedded_documents[0], embedded_documents[40], embedded_documents[-1]]
    return [
        {"material_id": f"mp-{place}", "structure": document["structure"], "bulk_modulus": {"vrh": value}}
        for place, (document, value) in enumerate(zip(chosen, VALUES, strict=True))
    ]


def structure_of(document: Document) -> Structure:
    sites = document["structure"]["sites"]  # not from_dict, which would import what a file names
    return Structure(
        document["structure"]["lattice"]["matrix"],
        [site["species"][0]["element"] for site in sites],
        [site["abc"] for site in sites],
    )


def is_broken(document: Document) -> bool:
    return "broken" in document


def text_of(document: Document, form: str) -> str:
    if is_broken(document):
        return "data_broken\n_cell_length_a oops\n_atom_site_fract_x 1\n" if form == "cif" else "broken"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return str(structure_of(document).to(fmt=form))


def write_json(path: Path, documents: list[Document]) -> Path:
    file = path / "export.json"
    file.write_text(json.dumps(documents, indent=1))
    return file


def write_json_gz(path: Path, documents: list[Document]) -> Path:
    file = path / "export.json.gz"
    file.write_bytes(gzip.compress(json.dumps(documents).encode()))
    return file


def write_mapping(path: Path, documents: list[Document]) -> Path:
    file = path / "mapping.json"
    file.write_text(json.dumps({document.pop("material_id"): document for document in map(dict, documents)}))
    return file


def write_jsonl(path: Path, documents: list[Document]) -> Path:
    file = path / "export.jsonl"
    file.write_text("".join(json.dumps(document) + "\n" for document in documents))
    return file


def write_jsonl_gz(path: Path, documents: list[Document]) -> Path:
    file = path / "export.jsonl.gz"
    file.write_bytes(gzip.compress("\n".join(map(json.dumps, documents)).encode()))
    return file


def write_csv(path: Path, documents: list[Document], form: str = "cif") -> Path:
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(["material_id", "bulk_modulus.vrh", form if form == "cif" else "structure"])
    for document in documents:
        cell = json.dumps(document["structure"]) if form == "json" else text_of(document, form)
        table.writerow([document["material_id"], document["bulk_modulus"]["vrh"], cell])
    file = path / "table.csv"
    file.write_text(text.getvalue())
    return file


def write_cgcnn(path: Path, documents: list[Document]) -> Path:
    for document in documents:
        (path / f"{document['material_id']}.cif").write_text(text_of(document, "cif"))
    rows = [f"{document['material_id']},{document['bulk_modulus']['vrh'] or ''}" for document in documents]
    (path / "id_prop.csv").write_text("\n".join(rows))
    return path


def write_folder(path: Path, documents: list[Document]) -> Path:
    forms = itertools.cycle([("cif", ".cif"), ("poscar", ".vasp"), ("json", ".json"), ("cif", ".cif.gz")])
    for document, (form, ending) in zip(documents, forms, strict=False):
        structure = json.dumps(document["structure"])
        content = (structure if form == "json" else text_of(document, form)).encode()
        file = path / f"{document['material_id']}{ending}"
        file.write_bytes(gzip.compress(content) if ending.endswith(".gz") else content)
    return path


def write_parquet(path: Path, documents: list[Document]) -> Path:
    rows = []
    for document in documents:
        sites = [] if is_broken(document) else document["structure"]["sites"]
        rows.append({
            "immutable_id": document["material_id"],
            "lattice_vectors": None if is_broken(document) else document["structure"]["lattice"]["matrix"],
            "cartesian_site_positions": [site["xyz"] for site in sites],
            "species_at_sites": [site["species"][0]["element"] for site in sites],
            "bulk_modulus.vrh": document["bulk_modulus"]["vrh"],
        })  # fmt: skip
    file = path / "table.parquet"
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file


def write_arrow_documents(path: Path, documents: list[Document]) -> Path:
    """Whole collections as mp-api stores them: a folder of Parquet with structs and maps."""
    structures = [{} if is_broken(document) else dict(document["structure"]) for document in documents]
    for structure in structures:
        structure["sites"] = [{"species": s["species"], "abc": s["abc"]} for s in structure.get("sites", [])]
    rows = {
        "material_id": [document["material_id"] for document in documents],
        "structure": [
            {"lattice": {"matrix": s["lattice"]["matrix"]}, "sites": s["sites"]} if s["sites"] else None
            for s in structures
        ],
        "bulk_modulus": pa.array(
            [list(document["bulk_modulus"].items()) for document in documents],
            pa.map_(pa.string(), pa.float64()),
        ),
    }
    folder = path / "version=2026.11"
    (path / "_delta_log").mkdir()
    folder.mkdir()
    pq.write_table(pa.table(rows), folder / "group-1-part-0.zstd.parquet")
    return path


def write_graphs(path: Path, documents: list[Document]) -> Path:
    file = path / "set.graphs"
    build(file, DataConfig(path=str(write_json(path, documents))), GraphConfig())
    return file


WRITERS: dict[str, tuple[str, Writer]] = {
    "json": ("mp_json", write_json),
    "json.gz": ("mp_json", write_json_gz),
    "mapping": ("mp_json", write_mapping),
    "jsonl": ("jsonl", write_jsonl),
    "jsonl.gz": ("jsonl", write_jsonl_gz),
    "csv-cif": ("csv", write_csv),
    "csv-json": ("csv", lambda path, documents: write_csv(path, documents, "json")),
    "csv-poscar": ("csv", lambda path, documents: write_csv(path, documents, "poscar")),
    "cgcnn": ("cgcnn", write_cgcnn),
    "folder": ("folder", write_folder),
    "parquet": ("parquet", write_parquet),
    "arrow": ("parquet", write_arrow_documents),
    "graphs": ("graphs", write_graphs),
}
every_form = pytest.mark.parametrize("form", WRITERS)


def assert_same(record: Record, document: Document) -> None:
    wanted = structure_of(document)
    assert record.material_id == document["material_id"]
    assert record.structure.species == wanted.species
    assert record.structure.lattice.parameters == pytest.approx(wanted.lattice.parameters, abs=1e-6)
    apart = record.structure.frac_coords - wanted.frac_coords
    assert np.abs(apart - np.round(apart)).max() < 1e-6


def test_every_reader_is_held_to_the_contract() -> None:
    single = {"cif", "poscar"}
    assert {name for name, _ in WRITERS.values()} | single == set(READERS)


@every_form
def test_the_same_crystals_give_the_same_records(tmp_path: Path, crystals: list[Document], form: str) -> None:
    name, write = WRITERS[form]
    path = write(tmp_path, crystals)
    records = list(read(path))
    assert records == list(read(path, format=name)), "auto finds the format"
    assert all(isinstance(record, Record) for record in records)
    for record, document in zip(records, crystals, strict=True):
        assert isinstance(record, Record)
        assert_same(record, document)
        if name != "folder":
            column = "target" if name == "cgcnn" else "bulk_modulus.vrh"
            assert record.values == {column: document["bulk_modulus"]["vrh"]}
        assert record.source


@every_form
def test_a_bad_crystal_costs_only_itself(tmp_path: Path, crystals: list[Document], form: str) -> None:
    broken = crystals[0] | {"material_id": "mp-00", "structure": {"lattice": {}, "sites": [{}]}, "broken": True}
    _, write = WRITERS[form]
    path = write(tmp_path, [crystals[0], broken, *crystals[1:]])
    items = list(read(path))
    if form == "graphs":
        items.insert(1, items.pop())  # what was set aside when they were made comes last
    first, bad, second, third = items
    assert isinstance(bad, SetAside)
    assert (bad.material_id, bad.stage) == ("mp-00", "read")
    assert bad.code
    assert bad.source
    assert bad.reason
    for record, document in zip((first, second, third), crystals, strict=True):
        assert isinstance(record, Record)
        assert_same(record, document)


@every_form
def test_blocks_hold_the_same_items_in_any_process(tmp_path: Path, crystals: list[Document], form: str) -> None:
    broken = crystals[0] | {"material_id": "mp-00", "structure": {"lattice": {}, "sites": [{}]}, "broken": True}
    many = [document | {"material_id": f"mp-{row}"} for row, document in enumerate(crystals * 100)]
    path = WRITERS[form][1](tmp_path, [*many[:150], broken, *many[150:]])
    pieces = [pickle.dumps(block) for block in blocks(path)]
    assert len(pieces) > 1
    parsed = [parse(pickle.loads(piece)) for piece in pieces]
    assert [parse(pickle.loads(piece)) for piece in pieces] == parsed, "and the same each time"
    assert max(map(len, parsed)) <= 256
    assert [item for items in parsed for item in items] == list(read(path))
    assert sum(isinstance(item, SetAside) for items in parsed for item in items) == 1


@every_form
def test_a_block_can_be_split_into_its_crystals(tmp_path: Path, crystals: list[Document], form: str) -> None:
    """So that one which ends the process that reads it costs no other."""
    broken = crystals[0] | {"material_id": "mp-00", "structure": {"lattice": {}, "sites": [{}]}, "broken": True}
    path = WRITERS[form][1](tmp_path, [crystals[0], broken, *crystals[1:]])
    for block in blocks(path):
        singles = [pickle.loads(pickle.dumps(single)) for single in block.split()]
        items = [parse(single) for single in singles]
        assert [len(found) for found in items] == [1] * len(parse(block))
        assert [found[0] for found in items] == parse(block)
        for single, (item,) in zip(singles, items, strict=True):
            if form == "graphs":
                continue  # whose crystals remember where they were before
            assert Path(single.place).name.split(":")[0] == Path(item.source).name.split(":")[0]
            assert single.place.rpartition(":")[2] == item.source.rpartition(":")[2]


@pytest.mark.parametrize("form", ["cif", "poscar"])
def test_single_files(tmp_path: Path, crystals: list[Document], form: str) -> None:
    path = tmp_path / {"cif": "mp-0.cif", "poscar": "POSCAR"}[form]
    path.write_text(text_of(crystals[0], form))
    (record,) = read(path)
    assert record == next(read(path, format=form))
    assert isinstance(record, Record)
    assert_same(record, crystals[0] | {"material_id": path.name.removesuffix(".cif")})


@pytest.mark.parametrize("form", ["json", "json.gz", "jsonl", "jsonl.gz", "csv-json", "parquet"])
def test_files_are_read_as_a_stream(tmp_path: Path, crystals: list[Document], form: str) -> None:
    """Reading 3,000 records holds no more memory than reading some hundred, and the first comes at once."""
    name, write = WRITERS[form]
    path = write(tmp_path, [crystals[2] | {"material_id": f"mp-{row}"} for row in range(3000)])
    stream = read(path, format=name)
    next(stream)
    tracemalloc.start()
    for _ in itertools.islice(stream, 500):
        pass
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    rest = sum(1 for _ in stream)
    after, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert rest == 3000 - 501
    assert after - before < 4e6
    assert peak - before < 12e6


FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect", "pickle.find_class")
_events: list[str] = []
_watching = False


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if _watching and (event in FORBIDDEN or event in ("import", "exec", "compile")):
        _events.append(f"{event} {arguments[0]!r}"[:200])


@every_form
def test_reading_runs_no_code(tmp_path: Path, crystals: list[Document], form: str) -> None:
    """Data that names modules, and an audit hook over all readers: nothing is imported, nothing runs."""
    global _watching
    gadget = {"@module": "this", "@class": "Anything", "@version": "1", "data": "__import__('os').system('false')"}
    hostile = json.loads(json.dumps(crystals[0] | gadget))
    hostile["structure"].update({"@module": "this", "@class": "Structure", "properties": gadget})
    for site in hostile["structure"]["sites"]:
        site["properties"] = {"magmom": gadget}
    documents = [crystals[0], hostile | {"material_id": "mp-9"}]
    path = WRITERS[form][1](tmp_path, documents)
    list(read(path))  # warm-up: our own lazy imports
    if not hasattr(sys, "_cgnn_watch"):
        sys._cgnn_watch = _watch  # type: ignore[attr-defined] # hooks can't be removed: one for all tests
        sys.addaudithook(_watch)
    _events.clear()
    _watching = True
    try:
        items = list(read(path))
    finally:
        _watching = False
    assert [type(item) for item in items] == [Record, Record]
    assert not _events
    assert "this" not in sys.modules
