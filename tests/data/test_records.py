"""Reading: what is taken from a file, what is refused and how, and that one bad record costs only itself."""

from __future__ import annotations

import copy
import csv
import gzip
import json
import random
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ase.build import bulk
from pymatgen.core import Lattice, Molecule, Structure
from pymatgen.io.cif import CifWriter

from cgnn.data.reading import json_stream, streams
from cgnn.data.reading.cif import crystal_from_cif
from cgnn.data.reading.gate import check_structure
from cgnn.data.reading.structures import crystal_from
from cgnn.data.records import Item, Record, SetAside, from_structures, read, without_duplicates
from cgnn.errors import CrystalError, DataError

CORPUS = Path(__file__).parents[1] / "corpus"
Document = dict[str, Any]


def salt(name: str = "mp-1", **values: Any) -> Document:
    """A small document."""
    sites = [
        {"species": [{"element": symbol, "occu": 1}], "abc": [place] * 3}
        for symbol, place in [("Na", 0.0), ("Cl", 0.5)]
    ]
    lattice = {"matrix": [[4.0, 0, 0], [0, 4.0, 0], [0, 0, 4.0]]}
    return {"material_id": name, "structure": {"lattice": lattice, "sites": sites}, **values}


def written(path: Path, content: str | bytes | list[Document]) -> Path:
    if isinstance(content, list):
        content = json.dumps(content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def only(items: Iterator[Item]) -> Record:
    (record,) = items
    assert isinstance(record, Record), record
    return record


def cif_text(structure: Structure, **more: Any) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return str(CifWriter(structure, **more))


# --- the corpus: every file is named after what must become of it ---------------------------------------------------


@pytest.mark.parametrize("file", sorted(CORPUS.iterdir()), ids=lambda file: file.name)
def test_corpus(file: Path) -> None:
    expected = file.name.partition("--")[0]
    if expected == "error":
        with pytest.raises(DataError, match=file.name.replace(".", r"\.")):
            list(read(file))
        return
    item, *more = read(file)
    if expected == "ok":
        assert isinstance(item, Record)
        return
    assert isinstance(item, SetAside)
    assert not [record for record in more if isinstance(record, Record)]
    assert item.code == expected
    assert item.source.startswith(file.name)
    assert item.reason.isprintable()
    assert len(item.reason) < 400


def test_fuzzed_files_never_break_a_reader(tmp_path: Path) -> None:
    """Bytes of the good corpus files cut, doubled and changed: an item or a `DataError`, nothing else, and soon."""
    rng = random.Random(20261121)
    files = [file for file in sorted(CORPUS.iterdir()) if file.stat().st_size < 5000]
    for _ in range(400):
        source = rng.choice(files)
        content = bytearray(source.read_bytes())
        for _ in range(rng.randint(1, 6)):
            place = rng.randrange(len(content) + 1)
            change = rng.choice([b"", b'"', b"\n", b"{", b"]", b"\x00", b"\xff", b"1e999", b"?", b"nan", b"_loop"])
            content[place : place + rng.choice([0, 1, 8])] = change
        path = written(tmp_path / f"fuzzed{''.join(source.suffixes)}", bytes(content))
        started = time.process_time()
        try:
            items = list(read(path))
        except DataError:
            items = []
        assert all(isinstance(item, Record | SetAside) for item in items)
        assert time.process_time() - started < 20


# --- values and ids -------------------------------------------------------------------------------------------------


def test_values_keep_their_kind_and_their_nested_names(tmp_path: Path) -> None:
    document = salt(
        bulk_modulus={"vrh": 100, "voigt": None, "@class": "X"},
        shear_modulus=None,
        is_metal=False,
        magnetic="FM",
        charges=[1.0, -1],
        elastic_tensor=[[1, 2], [3, 4]],
        three=[1, 2, 3],
        flags=[True, False],
        gaps=[None, 0.5],
        k_text="12 GPa",
        deep={"a": {"b": {"c": 1.5}}},
        **{"@module": "os"},
    )
    text = json.dumps([document]).replace('"k_text"', '"nothing": NaN, "k_text"')
    values = only(read(written(tmp_path / "a.json", text))).values
    assert np.isnan(values.pop("nothing"))  # type: ignore[arg-type]
    assert values == {
        "bulk_modulus.vrh": 100,
        "bulk_modulus.voigt": None,
        "shear_modulus": None,
        "is_metal": False,
        "magnetic": "FM",
        "charges": [1.0, -1],
        "flags": [True, False],
        "gaps": [None, 0.5],
        "k_text": "12 GPa",
        "deep.a.b.c": 1.5,
    }
    assert values["is_metal"] is False


@pytest.mark.parametrize(
    ("name", "value", "column", "expected"),
    [
        ("k_vrh", 120.0, "bulk_modulus.vrh", 120.0),
        ("K_VRH", 120.0, "bulk_modulus.vrh", 120.0),
        ("g_reuss", 3, "shear_modulus.reuss", 3),
        ("log10(K_VRH)", 2.0, "bulk_modulus.vrh", 100.0),
        ("log10(G_VRH)", "n/a", "shear_modulus.vrh", "n/a"),
        ("log10(G_VRH)", 1e9, "shear_modulus.vrh", 1e9),
        ("elasticity", {"K_VRH": 5}, "bulk_modulus.vrh", 5),
    ],
)
def test_flat_names_of_moduli_are_known(tmp_path: Path, name: str, value: Any, column: str, expected: Any) -> None:
    values = only(read(written(tmp_path / "a.json", [salt(**{name: value})]))).values
    assert values[column] == expected
    if not isinstance(value, dict):
        assert values[name] == value


def test_a_given_modulus_is_not_replaced(tmp_path: Path) -> None:
    document = salt(bulk_modulus={"vrh": 1.0}, k_vrh=2.0)
    assert only(read(written(tmp_path / "a.json", [document]))).values["bulk_modulus.vrh"] == 1.0


def test_ids_are_found_by_name_or_made(tmp_path: Path) -> None:
    documents = [salt(), salt(), salt(), salt()]
    for document, name in zip(documents, ["immutable_id", "id", "mp_id", "other"], strict=True):
        document[name] = document.pop("material_id") + name
    documents[1]["id"] = 149
    items = list(read(written(tmp_path / "my.export.json", documents)))
    assert [item.material_id for item in items] == ["mp-1immutable_id", "149", "mp-1mp_id", "my.export-4"]
    items = list(read(tmp_path / "my.export.json", id_column="other"))
    assert [getattr(item, "code", item.material_id) for item in items] == ["no_column"] * 3 + ["mp-1other"]


ODD_IDS = ["../../etc/x", "/abs", "a/b", "CON", "mp-1 ", "ид", "a" * 200, "'; drop", "a,b", "NUL", "mp-aaaaaaft"]
BAD_IDS = [
    "", " ", "a\nb", "a\tb", "a\0b", "a\rb", "a" * 201, "=HYPERLINK(1)", "+1", "-1", "@x", " =1", "\uff1d1",
    "a\u202eb", "a\u200bb", "\ud800", True, 1.5, ["a"], {"a": 1}, 10**30,
]  # fmt: skip


@pytest.mark.parametrize("name", BAD_IDS, ids=lambda name: ascii(name)[:20])
def test_hostile_ids_are_refused(tmp_path: Path, name: Any) -> None:
    (item,) = read(written(tmp_path / "a.json", [salt(name)]))
    assert isinstance(item, SetAside)
    assert (item.code, item.material_id, item.source) == ("bad_id", "", "a.json:1")
    assert item.reason.isprintable()


@pytest.mark.parametrize("form", ["json", "csv"])
def test_odd_ids_are_kept_as_they_are(tmp_path: Path, form: str) -> None:
    path = tmp_path / f"a.{form}"
    if form == "json":
        written(path, [salt(name) for name in ODD_IDS])
    else:
        with open(path, "w", newline="") as handle:
            rows = [(name, json.dumps(salt()["structure"])) for name in ODD_IDS]
            csv.writer(handle).writerows([("material_id", "structure"), *rows])
    assert [item.material_id for item in read(path)] == ODD_IDS


def test_ids_of_a_cgcnn_folder_stay_in_it(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    text = cif_text(crystal_from(salt()["structure"]).to_structure())
    for file in (tmp_path / "secret.cif", inside / "good.cif", inside / "two words.cif"):
        file.write_text(text)
    names = ["../secret", str(tmp_path / "secret"), "..\\secret", "good", "two words", "absent", "é" * 200, "."]
    written(inside / "id_prop.csv", "\n".join(f"{name},1,x,3.5" for name in names))
    items = list(read(inside))
    assert [getattr(item, "code", item.material_id) for item in items] == [
        "bad_id", "bad_id", "bad_id", "good", "two words", "no_file", "no_file", "bad_id",
    ]  # fmt: skip
    assert items[3].values == {"target": 1, "target_1": "x", "target_2": 3.5}  # type: ignore[union-attr]
    assert items[3].source == "id_prop.csv:4"


def test_file_names_that_are_no_ids(tmp_path: Path) -> None:
    text = cif_text(crystal_from(salt()["structure"]).to_structure())
    for name in ["a\nb.cif", "=1.cif", "good.cif", ".hidden.cif", "notes.txt", "POSCAR-x", "b.cif.gz"]:
        written(tmp_path / name, gzip.compress(text.encode()) if name.endswith("gz") else text)
    items = list(read(tmp_path))
    assert [getattr(item, "code", item.material_id) for item in items] == [
        "bad_id", "bad_poscar", "bad_id", "b", "good",
    ]  # fmt: skip
    assert all(item.source.isprintable() for item in items)


# --- one bad record costs only itself -------------------------------------------------------------------------------

BROKEN_TEXTS = [
    "nul", "{", "[1 2]", "'text'", '{"a": 1,}', '{"material_id": "mp-1", "material_id": "mp-2"}', "NaN", "[]", '"text"',
    '{"material_id": "x", "structure": None}', '{"material_id": "x", "structure": {"a": 1, 2}}', "{]}", "}",
    '{"material_id": "x" "structure": 1}', '{"material_id": "\\q"}',
]  # fmt: skip


def bad_documents() -> list[Document]:
    changes: list[dict[str, Any]] = [
        {"abc": [float("nan"), 0, 0]}, {"abc": None}, {"abc": ["a", 0, 0]}, {"species": []},
        {"species": [{"element": "Zz", "occu": 1}]}, {"species": [{"element": "Na", "occu": 0.3}]},
    ]  # fmt: skip
    bad = []
    for change in changes:
        document = salt("mp-bad")
        document["structure"]["sites"][0] |= change
        bad.append(document)
    for lattice in ({"matrix": [[0, 0, 0]] * 3}, {"matrix": None}, None, {"matrix": [[1e308] * 3] * 3}):
        document = salt("mp-bad")
        document["structure"]["lattice"] = lattice
        bad.append(document)
    return [*bad, salt("mp-bad") | {"structure": None}, {"material_id": "mp-bad"}, salt("=cmd()")]


@pytest.mark.parametrize("form", ["json", "jsonl", "json.gz", "jsonl.gz"])
def test_a_thousand_records_with_a_hundred_bad_ones(tmp_path: Path, form: str) -> None:
    rng = random.Random(4)
    bad_rows = set(rng.sample(range(1000), 100))
    pieces = []
    for row in range(1000):
        bad = rng.choice([*map(json.dumps, bad_documents()), *BROKEN_TEXTS[:13]])
        pieces.append(bad if row in bad_rows else json.dumps(salt(f"mp-{row}", k=row)))
    text = "\n".join(pieces) if "jsonl" in form else "[\n" + ",\n".join(pieces) + "\n]"
    content = gzip.compress(text.encode()) if form.endswith("gz") else text.encode()
    items = list(read(written(tmp_path / f"a.{form}", content)))
    records = [item for item in items if isinstance(item, Record)]
    assert [record.material_id for record in records] == [f"mp-{row}" for row in range(1000) if row not in bad_rows]
    if "jsonl" in form:
        aside = [item.source for item in items if isinstance(item, SetAside)]
        assert aside == [f"a.{form}:{row + 1}" for row in sorted(bad_rows)]
    else:
        assert len(items) - len(records) == pytest.approx(100, abs=12), "a stray bracket may count for two"


@pytest.mark.parametrize("broken", BROKEN_TEXTS)
@pytest.mark.parametrize("layout", ["[%s, %s, %s]", "[%s,\n%s\n,\n%s]", "%s\n%s\n%s"])
def test_what_stands_beside_broken_json_is_read(tmp_path: Path, broken: str, layout: str) -> None:
    text = layout % (json.dumps(salt("mp-1")), broken, json.dumps(salt("mp-3")))
    items = list(read(written(tmp_path / "a.json", text), format="mp_json" if text.startswith("[") else "jsonl"))
    assert [item.material_id for item in items if isinstance(item, Record)] == ["mp-1", "mp-3"]
    assert sum(isinstance(item, SetAside) for item in items) == 1


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_records_across_the_borders_of_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(json_stream, "CHUNK", chunk)
    documents = [salt(f"mp-{row}", text='é"\\ud83d\\"{[', number=-1.5e-7) for row in range(3)]
    documents[1]["structure"]["sites"][0]["abc"] = None
    items = list(read(written(tmp_path / "a.json", json.dumps(documents, ensure_ascii=False))))
    assert [getattr(item, "code", item.material_id) for item in items] == ["mp-0", "bad_coordinates", "mp-2"]
    assert items[2].values == {"text": 'é"\\ud83d\\"{[', "number": -1.5e-7}  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["a.json.gz", "a.jsonl.gz"])
@pytest.mark.parametrize("share", [0.2, 0.6, 0.999])
def test_a_cut_file_gives_what_came_before(tmp_path: Path, name: str, share: float) -> None:
    rng = random.Random(1)
    documents = [salt(f"mp-{row}", noise=rng.random()) for row in range(200)]
    text = json.dumps(documents) if "jsonl" not in name else "\n".join(map(json.dumps, documents))
    packed = gzip.compress(text.encode())
    *records, last = read(written(tmp_path / name, packed[: int(len(packed) * share)]))
    assert [record.material_id for record in records] == [f"mp-{row}" for row in range(len(records))]
    assert len(records) > 100 * share
    assert isinstance(last, SetAside)
    assert last.code == "truncated"


def test_rows_of_a_table(tmp_path: Path) -> None:
    cell = json.dumps(salt()["structure"])
    rows = [
        ["mp-1", cell, "1.5", "", "True"],
        ["mp-2", cell, "1"],
        [],
        ["mp-3", cell, " -2e3 ", "text", "007"],
        ["mp-4", cell, "nan", "1_000", "1,5"],
        ["mp-5", "", "1", "", ""],
    ]
    path = tmp_path / "a.csv"
    with open(path, "w", newline="", encoding="utf-8-sig") as handle:
        csv.writer(handle).writerows([["ID", "Structure", "k", "note", "flag"], *rows])
    first, bad, third, fourth, empty = read(path)
    assert isinstance(first, Record)
    assert first.values == {"k": 1.5, "note": None, "flag": "True"}
    assert isinstance(bad, SetAside)
    assert (bad.code, bad.source) == ("bad_csv", "a.csv:2")
    assert isinstance(third, Record)
    assert third.values == {"k": -2000.0, "note": "text", "flag": 7.0}
    assert isinstance(fourth, Record)
    assert np.isnan(fourth.values["k"])  # type: ignore[arg-type]
    assert (fourth.values["note"], fourth.values["flag"]) == ("1_000", "1,5")
    assert isinstance(empty, SetAside)
    assert (empty.material_id, empty.code) == ("mp-5", "no_structure")


def test_a_frame_saved_with_cifs_is_read(tmp_path: Path) -> None:
    structure = crystal_from(salt()["structure"]).to_structure()
    frame = pd.DataFrame({"material_id": ["mp-1", "mp-2"], "cif": [cif_text(structure)] * 2, "k": [1.0, None]})
    frame.to_csv(tmp_path / "a.csv")
    items = list(read(tmp_path / "a.csv"))
    assert [item.values for item in items if isinstance(item, Record)] == [{"k": 1.0}, {"k": None}]


def test_a_frame_saved_with_printed_structures_says_what_to_do(tmp_path: Path) -> None:
    structure = crystal_from(salt()["structure"]).to_structure()
    frame = pd.DataFrame({"material_id": ["mp-1", "mp-2"], "structure": [structure, structure.as_dict()]})
    frame.to_csv(tmp_path / "a.csv", index=False)
    for item in read(tmp_path / "a.csv"):
        assert isinstance(item, SetAside)
        assert item.code == "python_repr"
        assert "to(fmt='cif')" in item.reason


def test_json_in_other_wrappings(tmp_path: Path) -> None:
    structure = salt()["structure"]
    split = {"index": [0], "columns": ["structure", "log10(K_VRH)"], "data": [[structure, 2.0]]}  # as Matbench has it
    for content in ({"meta": {}, "data": [salt()]}, {"mp-1": {"structure": structure}}, {"mp-1": structure}, salt()):
        assert only(read(written(tmp_path / "a.json", json.dumps(content)))).material_id == "mp-1"
    assert only(read(written(tmp_path / "a.json", json.dumps(split)))).values["bulk_modulus.vrh"] == 100.0
    assert only(read(written(tmp_path / "a.json", json.dumps(structure)))).material_id == "a-1"
    lines = "\n".join(json.dumps(salt(f"mp-{row}")) for row in range(3))
    assert len(list(read(written(tmp_path / "a.json", lines)))) == 3


def test_optimade_columns_with_species(tmp_path: Path) -> None:
    def row(name: str, symbols: list[str], shares: list[float]) -> Document:
        return {
            "id": name,
            "lattice_vectors": [[4.0, 0, 0], [0, 4.0, 0], [0, 0, 4.0]],
            "cartesian_site_positions": [[0.0, 0, 0]],
            "species_at_sites": ["kind"],
            "species": [{"name": "kind", "chemical_symbols": symbols, "concentration": shares}],
            "band_gap": 1.0,
        }

    rows = [row("a", ["Fe"], [1.0]), row("b", ["Fe", "vacancy"], [0.9, 0.1]), row("c", ["Fe"], [0.5])]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    first, *mixtures = read(tmp_path / "a.parquet")
    assert isinstance(first, Record)
    assert first.structure.formula == "Fe1"
    assert first.values == {"band_gap": 1.0}
    assert [item.code for item in mixtures if isinstance(item, SetAside)] == ["disordered"] * 2


def test_a_damaged_parquet_file(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    document = {
        "immutable_id": "mp-1",
        "lattice_vectors": np.eye(3).tolist(),
        "cartesian_site_positions": [[0, 0, 0.0]],
        "species_at_sites": ["Fe"],
    }
    pq.write_table(pa.Table.from_pylist([document] * 3), path)
    content = path.read_bytes()
    for damaged in (content[:-40], content[: len(content) // 2] + content[len(content) // 2 + 9 :]):
        with pytest.raises(DataError, match=r"a\.parquet: not a Parquet file"):
            list(read(written(path, damaged)))


# --- files as a whole -----------------------------------------------------------------------------------------------


def test_unusable_paths(tmp_path: Path) -> None:
    written(tmp_path / "export.json", [salt()])
    with pytest.raises(DataError, match=r"exprt\.json: no such file; did you mean export\.json"):
        read(tmp_path / "exprt.json")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no crystals in the folder"):
        list(read(tmp_path / "empty"))
    with pytest.raises(DataError, match=r"no id_prop\.csv"):
        list(read(tmp_path / "empty", format="cgcnn"))
    with pytest.raises(DataError, match="format 'csv' reads a file, this is a folder"):
        read(tmp_path / "empty", format="csv")
    with pytest.raises(DataError, match="format 'folder' reads a folder, this is a file"):
        read(tmp_path / "export.json", format="folder")
    with pytest.raises(DataError, match="unknown format 'jsonlines'; did you mean 'jsonl'"):
        read(tmp_path / "export.json", format="jsonlines")
    with pytest.raises(DataError, match="neither a file nor a folder"):
        read("/dev/null")


def test_an_export_in_a_folder_of_crystals_is_told_from_a_crystal(tmp_path: Path) -> None:
    written(tmp_path / "export.json", [salt()])
    written(tmp_path / "rocksalt.json", json.dumps(salt()))
    export, crystal = read(tmp_path, format="folder")
    assert isinstance(export, SetAside)
    assert (export.material_id, export.code) == ("export", "bad_record")
    assert "give the file's own path" in export.reason
    assert isinstance(crystal, Record)


@pytest.mark.parametrize("form", ["json", "jsonl", "csv", "parquet"])
@pytest.mark.parametrize("option", ["id_column", "structure_column"])
def test_unknown_columns_are_named_with_the_nearest(tmp_path: Path, form: str, option: str) -> None:
    path = tmp_path / f"a.{form}"
    row = {"my_id": "mp-1", "my_crystal": json.dumps(salt()["structure"])}
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist([row | {"structure": ""}]), path)
    elif form == "csv":
        pd.DataFrame([row | {"structure": ""}]).to_csv(path, index=False)
    else:
        written(path, json.dumps([row]) if form == "json" else json.dumps(row))
    names = {"id_column": "my_id", "structure_column": "my_crystal"}
    assert only(read(path, **names)).material_id == "mp-1"
    typo = names[option].replace("my_", "my")
    with pytest.raises(DataError, match=rf"unknown column '{typo}'; did you mean '{names[option]}'.*known: my_id, my_"):
        list(read(path, **{**names, option: typo}))


def test_a_record_that_lacks_a_column_is_set_aside(tmp_path: Path) -> None:
    rows = [{"x": 1}, {"name": "mp-1", "structure": salt()["structure"]}]
    first, second = read(written(tmp_path / "a.json", rows), id_column="name")
    assert isinstance(first, SetAside)
    assert first.code == "no_column"
    assert isinstance(second, Record)


# --- caps -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [b"", b"[", b'{"a": "'], ids=["line", "list", "object"])
@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.json.gz"])
def test_gzip_bombs_are_refused(tmp_path: Path, name: str, start: bytes) -> None:
    """400 MB in one record: refused after reading a small part of it, without holding it."""
    path = tmp_path / name
    good = json.dumps(salt()).encode()
    with gzip.open(path, "wb", compresslevel=1) as handle:
        handle.write(good + b"\n" if "jsonl" in name else b"[" + good + b",\n")
        handle.write(start)
        for _ in range(400):
            handle.write(b"0" * 2**20)
        handle.write(b"\n" + good + b"\n")
    first, bomb, *rest = read(path)
    assert isinstance(first, Record)
    assert isinstance(bomb, SetAside)
    if "jsonl" in name:
        assert bomb.code == "too_large"
        assert [type(item) for item in rest] == [Record], "a line is passed over"
    else:
        assert "nothing after it could be read" in (rest or [bomb])[-1].reason  # type: ignore[union-attr]
        assert len(rest) <= 1


def test_a_long_row_of_a_table_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "RECORD_BYTES", 200_000)
    cell = json.dumps(salt()["structure"]).replace('"', '""')
    rows = [f'mp-1,"{cell}"', "mp-2," + "x" * 300_000, f'mp-3,"{cell}"']
    items = list(read(written(tmp_path / "a.csv", "\n".join(["id,structure", *rows]))))
    assert [getattr(item, "code", item.material_id) for item in items] == ["mp-1", "too_large", "mp-3"]


def test_a_symmetry_bomb_is_refused_before_it_is_computed() -> None:
    operations = "\n".join(f" 'x+{n}/997, y, z'" for n in range(192))
    sites = "\n".join(f" Na Na 0.{n:04d} 0.1 0.2" for n in range(3000))
    text = f"""data_bomb
_cell_length_a 40\n_cell_length_b 40\n_cell_length_c 40
_cell_angle_alpha 90\n_cell_angle_beta 90\n_cell_angle_gamma 90
loop_\n _symmetry_equiv_pos_as_xyz\n{operations}
loop_\n _atom_site_label\n _atom_site_type_symbol
 _atom_site_fract_x\n _atom_site_fract_y\n _atom_site_fract_z\n{sites}
"""
    with pytest.raises(CrystalError, match="make up to 576,000 atoms"):
        crystal_from_cif(text)


# --- CIF ------------------------------------------------------------------------------------------------------------


def test_cifs_of_real_crystals_come_back_in_order(embedded_documents: list[Document]) -> None:
    for document in embedded_documents[::40]:
        structure = crystal_from(document["structure"]).to_structure()
        for symprec in (None, 0.01):
            back = crystal_from(cif_text(structure, symprec=symprec)).to_structure()
            assert back.density == pytest.approx(structure.density, rel=1e-4)
        back = crystal_from(cif_text(structure)).to_structure()
        assert back.species == structure.species
        apart = back.frac_coords - structure.frac_coords
        assert np.abs(apart - np.round(apart)).max() < 1e-6


def test_per_atom_values_follow_the_order_of_a_cif(tmp_path: Path) -> None:
    lattice = Lattice.cubic(4.0)
    structure = Structure(lattice, ["O", "Na", "O"], [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0, 0]])
    document = {"material_id": "mp-1", "cif": cif_text(structure), "magmoms": [1.0, 2.0, 3.0]}
    record = only(read(written(tmp_path / "a.json", [document])))
    assert dict(zip(["O", "Na"], record.values["magmoms"], strict=False)) == {"O": 1.0, "Na": 2.0}  # type: ignore[arg-type]
    assert [element.symbol for element in record.structure.species] == ["O", "Na", "O"]


# --- duplicates -----------------------------------------------------------------------------------------------------


def test_duplicates_are_found_among_ten_thousand() -> None:
    rng = random.Random(7)
    crystal = crystal_from(salt()["structure"])
    same, other = rng.sample(range(5000, 10_000), 25), rng.sample(range(5000), 25)

    def stream() -> Iterator[Item]:
        for row in range(10_000):
            yield Record(f"mp-{row}", crystal, {"k": row}, f"a:{row}")
            if row in same:
                yield Record(f"mp-{row}", copy.deepcopy(crystal), {"k": row}, f"b:{row}")
            if row in other:
                yield Record(f"mp-{row}", crystal, {"k": -1}, f"b:{row}")

    items = list(without_duplicates(stream()))
    codes = Counter(item.code for item in items if isinstance(item, SetAside))
    assert codes == {"duplicate": 25, "id_conflict": 25}
    assert [item.source for item in items if isinstance(item, Record)] == [f"a:{row}" for row in range(10_000)]
    for item in items:
        if isinstance(item, SetAside):
            row = int(item.source.removeprefix("b:"))
            assert item.code == ("duplicate" if row in same else "id_conflict")
            assert f"a:{row}" in item.reason


# --- crystals in memory ---------------------------------------------------------------------------------------------


def test_structures_and_atoms_become_records_and_stay_as_they_are() -> None:
    structure = crystal_from(salt()["structure"]).to_structure()
    structure.add_oxidation_state_by_element({"Na": 1, "Cl": -1})
    structure.add_site_property("magmom", [1.0, 2.0])
    atoms = bulk("Cu", cubic=True)
    atoms.positions += 0.1
    inputs = [structure, atoms, structure]
    before = [structure.as_dict(), copy.deepcopy(atoms)]
    for given in (inputs, pd.Series(inputs, index=[5, 3, 1]), iter(inputs), tuple(inputs)):
        items = list(from_structures(given))
        assert [item.material_id for item in items] == ["crystal-0", "crystal-1", "crystal-2"]
        assert [item.structure.formula for item in items if isinstance(item, Record)] == ["Na1 Cl1", "Cu4", "Na1 Cl1"]
    assert structure.as_dict() == before[0]
    assert atoms == before[1]
    first, second, _ = items
    assert isinstance(first, Record)
    assert isinstance(second, Record)
    assert first.structure is not structure
    assert not first.structure.site_properties
    assert [str(element) for element in first.structure.species] == ["Na", "Cl"]
    assert second.structure.cart_coords == pytest.approx(atoms.positions)


def test_single_crystals_and_given_ids() -> None:
    structure = crystal_from(salt()["structure"]).to_structure()
    assert only(from_structures(structure)).material_id == "crystal-0"
    assert only(from_structures(bulk("Cu"), ids=["mp-30"])).material_id == "mp-30"
    items = list(from_structures([structure, structure], ids=["mp-1", "=2"]))
    assert [getattr(item, "code", item.material_id) for item in items] == ["mp-1", "bad_id"]
    with pytest.raises(DataError, match="more structures"):
        list(from_structures([structure, structure], ids=["mp-1"]))
    with pytest.raises(DataError, match="more ids"):
        list(from_structures([structure], ids=["mp-1", "mp-2"]))
    with pytest.raises(DataError, match=r"got str; files are read by cgnn\.data\.records\.read"):
        from_structures("export.json")
    with pytest.raises(DataError, match="expected structures, got int"):
        from_structures(3)


def test_unusable_crystals_in_memory_are_set_aside() -> None:
    structure = crystal_from(salt()["structure"]).to_structure()
    mixed = Structure(Lattice.cubic(3), [{"Cu": 0.5, "Au": 0.5}], [[0, 0, 0]])
    dummy = Structure(Lattice.cubic(3), ["X"], [[0, 0, 0]])
    free = bulk("Cu")
    free.pbc = False
    odd = [None, 3, mixed, dummy, free, Molecule(["H"], [[0, 0, 0]]), structure]
    items = list(from_structures(odd))
    assert [getattr(item, "code", item.material_id) for item in items] == [
        "no_structure", "no_structure", "disordered", "unknown_element", "not_periodic", "no_structure", "crystal-6",
    ]  # fmt: skip


def test_hydrogen_isotopes_and_charges_are_dropped() -> None:
    structure = Structure(Lattice.cubic(4), ["D", "Fe3+"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    assert [str(element) for element in check_structure(structure).to_structure().species] == ["H", "Fe"]


# --- real data ------------------------------------------------------------------------------------------------------


def test_the_real_export_is_read_whole(real_data: Path) -> None:
    items = list(without_duplicates(read(real_data / "elasticity.json.gz")))
    assert len(items) > 4000
    assert not [item for item in items if isinstance(item, SetAside)]
    assert all({"bulk_modulus.vrh", "shear_modulus.vrh"} <= set(item.values) for item in items)  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["formation_energy", "synthesizability"])
def test_real_parquet_files_are_read(real_data: Path, name: str) -> None:
    stream = read(real_data / f"{name}.parquet")
    items = [next(stream) for _ in range(3000)]
    refused = [item for item in items if isinstance(item, SetAside)]
    assert len(refused) <= 3, refused
    values = next(item.values for item in items if isinstance(item, Record))
    assert {"formation_energy_per_atom", "theoretical"} & set(values)
