"""``cgnn derive``: one crystal, tables, and bad requests."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from samples import Run, read_table

from cgnn.physics import RELATIONS, derive, lognormal_samples

DIAMOND = ("--bulk", 443, "--shear", 535, "--volume-per-atom", 5.67)
BANDS = ("p5", "p16", "p50", "p84", "p95")
HEADER = ["material_id", "formula", "bulk_modulus", "bulk_modulus_std", "shear_modulus", "shear_modulus_std"]
ROWS: list[list[object]] = [
    ["dia", "C", 443, 20, 535, 25, 5.67, "far from training"],
    ["alloy", "WRe", 320, 15, 150, 10, 15.5, ""],
    ["c-BN", "BN", 376, 20, 382, 20, 5.905, ""],
]
HEADER += ["volume_per_atom", "flags"]


def write(path: Path, rows: list[list[object]], header: list[str] = HEADER) -> Path:
    with open(path, "w", newline="") as handle:
        csv.writer(handle).writerows([header, *rows])
    return path


def test_one_crystal_is_told_with_unit_validity_and_source(cgnn: Run) -> None:
    done = cgnn("derive", *DIAMOND)
    assert done.code == 0
    lines = {line.split()[0]: line for line in done.out.splitlines()}
    assert lines["hardness_mo"].split()[1:3] == ["101.62", "GPa"]
    assert "not metals" in lines["hardness_mo"]
    assert "doi:10.1063/1.5113622" in lines["hardness_mo"]
    assert lines["toughness_mo"].split()[1:3] == ["6.4018", "MPa·m^½"]
    assert "debye_temperature" not in lines
    assert "no density: left out" in done.err
    assert "metals can't be told" in done.err


def test_a_formula_gives_the_density(cgnn: Run) -> None:
    words = ("--formula", "C", "--atoms-per-cell", 2, "--json")
    done = cgnn("derive", "--bulk", 443, "--shear", 535, "--volume-per-atom", 3.567**3 / 8, *words)
    found = json.loads(done.out)
    assert done.code == 0
    assert list(found["properties"]) == list(RELATIONS)
    assert round(found["properties"]["debye_temperature"]["value"]) == 2245
    assert found["properties"]["debye_temperature"]["unit"] == "K"
    assert found["superhard"] is True
    assert found["flags"] == [""]
    other = json.loads(cgnn("derive", "--bulk", 443, "--shear", 535, "--density", 3.5156, *words).out)
    assert other["properties"]["toughness_mo"]["value"] == pytest.approx(6.402, abs=2e-3)


def test_errors_of_the_moduli_become_bands(cgnn: Run) -> None:
    words = ("--bulk-std", 20, "--shear-std", 25, "--json", "--property", "hardness_mo")
    done = cgnn("derive", *DIAMOND, *words)
    entry = json.loads(done.out)["properties"]["hardness_mo"]
    samples = lognormal_samples([443.0], [535.0], [20.0], [25.0])
    expected = derive(443, 535, samples=samples, names=["hardness_mo"])
    assert [entry[band] for band in BANDS] == [expected[f"hardness_mo_{band}"][0] for band in BANDS]
    assert "taken as independent" in done.err
    related = cgnn("derive", *DIAMOND, *words, "--correlation", 0.9)
    assert "independent" not in related.err
    narrower = json.loads(related.out)["properties"]["hardness_mo"]
    assert narrower["p84"] - narrower["p16"] != entry["p84"] - entry["p16"]
    assert "96.15 to 106.9" in cgnn("derive", *DIAMOND, *words[:4]).out


def test_a_metal_is_flagged_and_not_superhard(cgnn: Run) -> None:
    done = cgnn("derive", *DIAMOND, "--formula", "OsIr")
    assert "! metal or alloy: not valid: hardness_mo" in done.out
    assert json.loads(cgnn("derive", *DIAMOND, "--formula", "OsIr", "--json").out)["superhard"] is False
    gap = json.loads(cgnn("derive", *DIAMOND, "--formula", "OsIr", "--band-gap", 0.5, "--json").out)
    assert gap["superhard"] is True


def test_a_negative_poissons_ratio_is_flagged_and_not_superhard(cgnn: Run) -> None:
    done = json.loads(cgnn("derive", "--bulk", 126, "--shear", 467, "--formula", "SiB", "--json").out)
    assert done["properties"]["hardness_mo"]["value"] > 80
    assert done["superhard"] is False
    assert done["flags"] == ["Poisson's ratio -0.33 outside 0 to 0.4: not valid: hardness_mo, toughness_mo"]


def test_a_csv_table_gets_columns(cgnn: Run, tmp_path: Path) -> None:
    table = write(tmp_path / "t.csv", ROWS)
    (tmp_path / "t.csv.units.json").write_text(json.dumps({"bulk_modulus": "GPa"}))
    done = cgnn("derive", table)
    assert done.code == 0
    assert "taken as independent: no correlation" in done.err
    rows = read_table(tmp_path / "t.derived.csv")
    assert [row["material_id"] for row in rows] == ["dia", "alloy", "c-BN"]
    assert [row["bulk_modulus"] for row in rows] == ["443", "320", "376"]
    assert [row["superhard"] for row in rows] == ["true", "false", "true"]
    assert rows[0]["hardness_mo"] == "101.6208"
    assert rows[2]["hardness_chen"] == "63.0057"
    assert rows[0]["flags"] == "far from training"
    assert rows[1]["flags"].startswith("metal or alloy: not valid: hardness_mo")
    samples = lognormal_samples([443.0], [535.0], [20.0], [25.0])
    expected = derive(443, 535, 5.67, samples=samples)
    for name in ("hardness_mo_p16", "toughness_mo_p95", "poisson_ratio_p5"):
        assert float(rows[0][name]) == pytest.approx(expected[name][0], rel=1e-6)
    assert float(rows[0]["debye_temperature"]) == pytest.approx(2245, abs=2)
    units = json.loads((tmp_path / "t.derived.csv.units.json").read_text())
    assert (units["bulk_modulus"], units["toughness_mo_p16"]) == ("GPa", "MPa·m^½")
    assert cgnn("derive", tmp_path / "t.derived.csv", "--output", tmp_path / "again.csv").code == 2


def test_a_parquet_table_keeps_its_types(cgnn: Run, tmp_path: Path) -> None:
    columns = dict(zip(HEADER, zip(*ROWS, strict=True), strict=True))
    columns |= {"tags": ([1, 2], [], None), "correlation": (0.5, 0.5, None)}
    before = pa.table({name: pa.array(values) for name, values in columns.items()})
    pq.write_table(before, tmp_path / "t.parquet", row_group_size=2)
    done = cgnn("derive", tmp_path / "t.parquet", "--output", tmp_path / "d.parquet", "--property", "hardness_mo")
    assert done.code == 0
    assert "independent" not in done.err
    after = pq.read_table(tmp_path / "d.parquet")
    kept = [name for name in before.column_names if name != "flags"]
    assert after.select(kept).equals(before.select(kept))
    assert after.column_names[len(kept) :] == [
        "hardness_mo",
        *(f"hardness_mo_{b}" for b in BANDS),
        "superhard",
        "flags",
    ]
    assert after.schema.field("hardness_mo_p16").metadata == {b"unit": b"GPa"}
    assert after["superhard"].to_pylist() == [True, False, True]
    samples = lognormal_samples([443.0], [535.0], [20.0], [25.0], 0.5)
    expected = derive(443, 535, samples=samples, names=["hardness_mo"])
    assert after["hardness_mo_p84"][0].as_py() == expected["hardness_mo_p84"][0]


def test_volumes_of_cells_and_other_names(cgnn: Run, tmp_path: Path) -> None:
    header = ["id", "K mine", "g_vrh", "volume", "nsites"]
    table = write(tmp_path / "t.csv", [["a", 443, 535, 11.34, 2], ["b", 443, 535, "", 2]], header)
    words = ("--column", "bulk=K mine", "--property", "toughness_mo")
    assert cgnn("derive", table, *words).code == 0
    rows = read_table(tmp_path / "t.derived.csv")
    assert [row["toughness_mo"] for row in rows] == ["6.401782", ""]
    assert "superhard" not in rows[0]


def test_many_rows_in_pieces_are_those_alone(cgnn: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[list[object]] = [[f"c{i}", "SiC", 100 + i, 9, 90 + i, 8, 10.0, ""] for i in range(25)]
    table = write(tmp_path / "t.csv", rows)
    cgnn("derive", table, "--output", tmp_path / "whole.csv", "--draws", 60)
    monkeypatch.setattr("cgnn.cli.derived_table._ROWS", 4)
    cgnn("derive", table, "--output", tmp_path / "pieces.csv", "--draws", 60)
    assert (tmp_path / "whole.csv").read_bytes() == (tmp_path / "pieces.csv").read_bytes()


BAD_ROWS: list[tuple[str, object, str]] = [
    ("shear_modulus", -5, "shear modulus: expected a number above 0, got -5"),
    ("bulk_modulus", 0, "bulk modulus: expected a number above 0, got 0"),
    ("bulk_modulus", "", "no bulk modulus"),
    ("bulk_modulus", "stiff", "bulk modulus: expected a number, got 'stiff'"),
    ("shear_modulus", "inf", "shear modulus: expected a number, got 'inf'"),
    ("bulk_modulus_std", -1, "bulk std: expected a number of 0 or more, got -1"),
    ("volume_per_atom", -2, "volume per atom: expected a number above 0, got -2"),
    ("formula", "Xx9", "formula: expected one such as B4C, got 'Xx9'"),
    ("formula", "steel", "formula: expected one such as B4C, got 'steel'"),
]


@pytest.mark.parametrize(("column", "value", "reason"), BAD_ROWS)
def test_a_bad_row_is_set_aside_by_row_and_id(
    column: str, value: object, reason: str, cgnn: Run, tmp_path: Path
) -> None:
    bad = list(ROWS[2])
    bad[HEADER.index(column)] = value
    table = write(tmp_path / "t.csv", [ROWS[0], bad, ROWS[1]])
    done = cgnn("derive", table, "--property", "hardness_mo")
    assert done.code == 3
    assert f"set aside: c-BN (t.csv:2): {reason}\n" in done.err
    assert [row["material_id"] for row in read_table(tmp_path / "t.derived.csv")] == ["dia", "alloy"]
    (aside,) = read_table(tmp_path / "t.derived.set_aside.csv")
    assert (aside["material_id"], aside["source"], aside["reason"]) == ("c-BN", "t.csv:2", reason)
    assert cgnn("derive", table, "--property", "hardness_mo", "--strict").code == 2


TABLE = "derive {table} "
BAD_REQUESTS = {
    "nothing": ("derive", r"nothing to derive from: give a table, or --bulk and --shear"),
    "one modulus": ("derive --bulk 443", r"nothing to derive from"),
    "negative modulus": ("derive --bulk 443 --shear -535", r"shear modulus: expected a number above 0, got -535"),
    "zero modulus": ("derive --bulk 0 --shear 535", r"bulk modulus: expected a number above 0, got 0"),
    "infinite modulus": ("derive --bulk inf --shear 535", r"bulk modulus: expected a number, got 'inf'"),
    "unknown modulus": ("derive --bulk nan --shear 535", r"no bulk modulus"),
    "negative volume": ("derive --bulk 4 --shear 5 --volume-per-atom -1", r"volume per atom: .*got -1"),
    "correlation": ("derive --bulk 4 --shear 5 --correlation 2", r"correlation: expected a number from -1 to 1, got 2"),
    "formula": ("derive --bulk 4 --shear 5 --formula Qq", r"formula: expected one such as B4C, got 'Qq'"),
    "property": ("derive --bulk 4 --shear 5 --property hardnes_mo", r"'hardnes_mo'; did you mean 'hardness_mo'\?"),
    "property without its input": ("derive --bulk 4 --shear 5 --property toughness_mo", r"needs volume_per_atom"),
    "table and modulus": (TABLE + "--bulk 4", r"--bulk: for one crystal"),
    "table and json": (TABLE + "--json", r"--json: for one crystal"),
    "crystal and output": ("derive --bulk 4 --shear 5 --output x.csv", r"--output: for tables"),
    "no file": ("derive no.csv", r"no\.csv: could not be opened: No such file"),
    "no parquet": ("derive no.parquet", r"no\.parquet: can't be read as Parquet: .*No such file"),
    "junk as parquet": ("derive {junk}", r"junk\.parquet: can't be read as Parquet"),
    "another kind": ("derive moduli.xlsx", r"moduli\.xlsx: properties are derived from tables in \.csv"),
    "kind of output": (TABLE + "--output x.parquet", r"x\.parquet: the result of t\.csv is a \.csv too"),
    "output is the input": (TABLE + "--output {table}", r"is the input and would be replaced"),
    "unknown column": (TABLE + "--column bulk=bulk_modulu", r"'bulk_modulu'; did you mean 'bulk_modulus'\?"),
    "unknown input": (TABLE + "--column bluk=bulk_modulus", r"unknown input 'bluk'; did you mean 'bulk'\?"),
    "no pair": (TABLE + "--column bulk", r"--column 'bulk': expected INPUT=COLUMN"),
    "unknown property": (TABLE + "--property hardness", r"unknown derived property 'hardness'"),
    "property lacks input": (
        TABLE + "--property conductivity_slack",
        r"t\.csv: conductivity_slack: needs atoms_per_cell",
    ),
    "table correlation": (TABLE + "--correlation -3", r"--correlation: expected a number from -1 to 1, got -3"),
    "no moduli": (
        "derive {lacking}",
        r"lacking\.csv: no column with bulk moduli \(looked for .*; got id, x\); name it",
    ),
    "no rows": ("derive {empty}", r"empty\.csv: nothing to derive from: it has no rows"),
    "only bad rows": ("derive {bad}", r"bad\.csv: nothing to derive from: bad\.csv:1 dia: bulk modulus: .*got -1"),
    "column twice": ("derive {twice}", r"twice\.csv: column 'bulk_modulus' is there twice"),
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_bad_requests_say_what_is_wrong_and_leave_nothing(name: str, cgnn: Run, tmp_path: Path) -> None:
    words, message = BAD_REQUESTS[name]
    files = {
        "table": write(tmp_path / "t.csv", ROWS),
        "lacking": write(tmp_path / "lacking.csv", [["a", 1]], ["id", "x"]),
        "empty": write(tmp_path / "empty.csv", []),
        "bad": write(tmp_path / "bad.csv", [["dia", "C", -1, 20, 535, 25, 5.67, ""]]),
        "twice": write(tmp_path / "twice.csv", [[1, 2]], ["bulk_modulus", "bulk_modulus"]),
        "junk": tmp_path / "junk.parquet",
    }
    files["junk"].write_text("junk")
    before = sorted(tmp_path.iterdir())
    done = cgnn(*words.format(**files).split())
    assert done.code == 2
    assert len(done.err.strip().splitlines()) == 1
    assert done.err.startswith("error: ")
    assert re.search(message, done.err), done.err
    assert sorted(tmp_path.iterdir()) == before
