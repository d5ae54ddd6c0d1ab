import csv
import json
import os
import resource

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from cgnn.data.records import SetAside
from cgnn.data.tables import TableWriter, write_set_aside
from cgnn.errors import DataError

UNITS = {"bulk_modulus": "GPa"}
HOSTILE = ["a,b", 'q"uote', "'", "Ω", "x" * 200, "NaN", "NA", "1e5", "007", "a;b", "../up", "C:\\x", "null", "\u202e"]


def write(path, pieces, units=UNITS):
    with TableWriter(path, units) as table:
        for piece in pieces:
            table.add(piece)


PIECES = [
    {"material_id": ["a", "b"], "bulk_modulus": np.array([1.0, np.nan]), "flags": ["", "x"]},
    {"material_id": ["c"], "bulk_modulus": np.array([123.456789012]), "flags": [""]},
]


def test_csv(tmp_path):
    write(tmp_path / "t.csv", PIECES)
    assert (tmp_path / "t.csv").read_text() == "material_id,bulk_modulus,flags\na,1,\nb,,x\nc,123.4568,\n"
    assert json.loads((tmp_path / "t.csv.units.json").read_text()) == UNITS
    assert sorted(os.listdir(tmp_path)) == ["t.csv", "t.csv.units.json"]


def test_parquet(tmp_path):
    write(tmp_path / "t.parquet", PIECES)
    table = pq.read_table(tmp_path / "t.parquet")
    assert table.column("material_id").to_pylist() == ["a", "b", "c"]
    np.testing.assert_array_equal(table.column("bulk_modulus").to_numpy(), [1.0, np.nan, 123.456789012])
    assert table.schema.field("bulk_modulus").metadata == {b"unit": b"GPa"}
    assert os.listdir(tmp_path) == ["t.parquet"]


def test_values_per_atom(tmp_path):
    piece = {"material_id": ["a", "b"], "charge": [np.array([1.0, 0.1234567891]), np.array([-2.0])]}
    write(tmp_path / "t.csv", [piece])
    rows = list(csv.DictReader((tmp_path / "t.csv").read_text().splitlines()))
    assert [json.loads(row["charge"]) for row in rows] == [[1.0, 0.1234568], [-2.0]]
    write(tmp_path / "t.parquet", [piece])
    assert pq.read_table(tmp_path / "t.parquet").column("charge").to_pylist() == [[1.0, 0.1234567891], [-2.0]]


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_hostile_ids_come_back(tmp_path, ending):
    path = tmp_path / f"t.{ending}"
    write(path, [{"material_id": HOSTILE, "y": np.arange(len(HOSTILE), dtype=float)}])
    if ending == "csv":
        frame = pd.read_csv(path, dtype={"material_id": str}, keep_default_na=False)
    else:
        frame = pd.read_parquet(path)
    assert frame["material_id"].tolist() == HOSTILE
    assert frame["y"].tolist() == list(range(len(HOSTILE)))


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_an_error_keeps_the_old_table(tmp_path, ending):
    path = tmp_path / f"t.{ending}"
    write(path, PIECES)
    before, names = path.read_bytes(), sorted(os.listdir(tmp_path))

    def half():
        with TableWriter(path, UNITS) as table:
            table.add(PIECES[0])
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        half()
    assert path.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == names


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_full_disk(tmp_path, ending, rng):
    path = tmp_path / f"t.{ending}"
    write(path, PIECES)
    names = sorted(os.listdir(tmp_path))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 15, before[1]))
    try:
        with pytest.raises(DataError, match=rf"t\.{ending}: could not be written: .*File too large"):
            write(path, [{"material_id": ["x"] * 5000, "y": rng.random(5000)} for _ in range(4)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert sorted(os.listdir(tmp_path)) == names


def test_full_disk_at_the_end(tmp_path):
    """What is too much may still wait in a buffer when the table is closed."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 10, before[1]))
    try:
        with pytest.raises(DataError, match=r"t\.csv: could not be written: File too large"):
            write(tmp_path / "t.csv", [{"material_id": ["x" * 100] * 20}])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["t.xlsx", "t", "t.csv.gz", "csv"])
def test_other_endings(tmp_path, name):
    with pytest.raises(DataError, match=r"tables are written as \.csv or \.parquet"):
        TableWriter(tmp_path / name, {})


def test_empty_table(tmp_path):
    write(tmp_path / "t.csv", [])
    assert (tmp_path / "t.csv").read_bytes() == b""


def test_set_aside(tmp_path):
    crystals = [
        SetAside("mp-1", "x.json:3", "graph", "overlap", 'atoms 0 and 1, "close"'),
        SetAside("", "=HYPERLINK(1).cif", "read", "bad_cif", "@sum\u00e9"),
    ]
    write_set_aside(tmp_path / "a.csv", crystals)
    rows = list(csv.reader((tmp_path / "a.csv").read_text().splitlines()))
    assert rows[0] == ["material_id", "source", "stage", "code", "reason"]
    assert rows[1] == ["mp-1", "x.json:3", "graph", "overlap", 'atoms 0 and 1, "close"']
    assert rows[2] == ["", "'=HYPERLINK(1).cif", "read", "bad_cif", "'@sum\u00e9"]
    write_set_aside(tmp_path / "none.csv", [])
    assert (tmp_path / "none.csv").read_text() == "material_id,source,stage,code,reason\n"
    assert sorted(os.listdir(tmp_path)) == ["a.csv", "none.csv"]
