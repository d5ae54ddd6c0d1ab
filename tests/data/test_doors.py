"""The fast ways into the house give what the patient ones give, and leave to these whatever is in doubt."""

from __future__ import annotations

import gzip
import json
import pickle
import random
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pymatgen.core import Lattice, Structure
from pymatgen.io.cif import CifWriter

from cgnn.data.items import Documents, Item, Source
from cgnn.data.reading import cif_symmetry, json_blocks, parquet_blocks
from cgnn.data.reading.cif import crystal_from_cif, patient_crystal
from cgnn.data.reading.cif_symmetry import expanded, group_of
from cgnn.data.reading.documents import Columns
from cgnn.data.reading.fast_cif import fast_crystal
from cgnn.data.reading.json_blocks import Elements, read_json, read_jsonl
from cgnn.data.reading.json_stream import documents, parse_json
from cgnn.data.reading.structures import crystal_from
from cgnn.data.records import Record, SetAside, blocks, parse, read
from cgnn.errors import CrystalError, DataError
from cgnn.graph.crystal import Crystal

CORPUS = Path(__file__).parents[1] / "corpus"


def cif_text(structure: Structure, **more: Any) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return str(CifWriter(structure, **more))


def apart(one: Crystal, other: Crystal) -> float:
    """The largest distance (Å) of an atom from the same one of another crystal, up to a lattice translation."""
    assert one.z.tolist() == other.z.tolist()
    cells = (one.pos - other.pos) @ np.linalg.inv(other.lattice)
    return float(
        np.abs((cells - np.round(cells)) @ other.lattice).max(initial=np.abs(one.lattice - other.lattice).max())
    )


# --- CIF ------------------------------------------------------------------------------------------------------------


def agreement(crystals: Iterator[Crystal]) -> tuple[int, int]:
    """Compare both readings of the CIFs of crystals; return how many there were, and how many were read fast."""
    count = fast = 0
    for crystal in crystals:
        for symprec in (None, 0.01):
            text = cif_text(crystal.to_structure(), symprec=symprec)
            found = fast_crystal(text)
            count += 1
            if found is not None:
                fast += 1
                assert apart(found, patient_crystal(text)) < 1e-4, text
    return count, fast


def real_crystals(folder: Path, number: int) -> Iterator[Crystal]:
    """Crystals spread over the real export; small ones, since pymatgen takes minutes for the others' images."""
    crystals = [item.crystal for item in read(folder / "elasticity.json.gz") if isinstance(item, Record)]
    small = [crystal for crystal in crystals if len(crystal) <= 24]
    yield from [small[place * len(small) // number] for place in range(number)]


def test_both_readings_of_a_cif_agree(real_data: Path) -> None:
    count, fast = agreement(real_crystals(real_data, 100))
    assert count == 200
    assert fast >= 0.95 * count


@pytest.mark.slow
def test_both_readings_of_thousands_of_cifs_agree(real_data: Path) -> None:
    count, fast = agreement(real_crystals(real_data, 2000))
    assert count >= 3000
    assert fast >= 0.95 * count


def test_every_space_group_is_read_fast_and_the_same() -> None:
    """A general position and the origin under the operations of the 230 groups, each also in P1."""
    rng = np.random.default_rng(5)
    for number in range(1, 231, 3):
        lattice = lattice_of(number, rng)
        structure = Structure.from_spacegroup(number, lattice, ["Fe", "O"], [[0, 0, 0], [0.11, 0.23, 0.37]])
        text = cif_text(structure, symprec=1e-3)
        found = fast_crystal(text)
        assert found is not None, number
        assert len(found) == len(structure)
        if len(found) < 60:
            assert apart(found, patient_crystal(text)) < 1e-4


def lattice_of(number: int, rng: np.random.Generator) -> Lattice:
    a, b, c = rng.uniform(7, 12, 3)
    if number < 3:
        return Lattice.from_parameters(a, b, c, 80, 95, 100)
    if number < 16:
        return Lattice.monoclinic(a, b, c, 100)
    if number < 75:
        return Lattice.orthorhombic(a, b, c)
    if number < 143:
        return Lattice.tetragonal(a, c)
    return Lattice.hexagonal(a, c) if number < 195 else Lattice.cubic(a)


QUARTZ = """data_quartz
_cell_length_a 4.913(1)
_cell_length_b 4.913(1)
_cell_length_c 5.405
_cell_angle_alpha 90
_cell_angle_beta 90.0
_cell_angle_gamma 120
_chemical_formula_sum 'Si O2'
loop_
_space_group_symop_operation_xyz
x,y,z
-y,x-y,z+1/3
'y-x, -x, 2/3+z'
y,x,-z
x-y,-y,2/3-z
-x,y-x,1/3-z
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_occupancy
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
Si1 Si4+ 1.0 0.4697(2) 0.0000 0.3333
O1 O2- . 0.4135 0.2669 0.1191
"""


def test_a_cif_written_by_hand_is_read_fast() -> None:
    found = fast_crystal(QUARTZ)
    assert found is not None
    assert found.z.tolist() == [14] * 3 + [8] * 6
    assert apart(found, patient_crystal(QUARTZ)) < 1e-9


DOUBTS = {
    "symmetry by name": ("loop_\n_space_group_symop_operation_xyz", "_space_group_IT_number 152\nloop_\n_other"),
    "no group": ("y,x,-z\n", ""),
    "an operation twice": ("y,x,-z\n", "y,x,-z\ny,x,-z\n"),
    "an odd translation": ("z+1/3", "z+0.3333"),
    "no operation": ("y,x,-z\n", "y,y,-z\n"),
    "a quote in an operation": ("'y-x, -x, 2/3+z'", '"y-x, -x, 2/3+z\'"'),
    "magnetic": ("_space_group_symop_operation_xyz", "_space_group_symop_magn_operation.xyz"),
    "partly occupied": ("Si4+ 1.0", "Si4+ 0.9"),
    "a quoted number": ("5.405", "'5.405'"),
    "an unknown number": ("0.2669", "?"),
    "an atom far away": ("0.2669", "0.26e69"),
    "no element": ("Si4+", "Zz"),
    "another formula": ("'Si O2'", "'Si O3'"),
    "a tag twice": ("_cell_length_b 4.913(1)", "_cell_length_b 4.913\n_cell_length_b 4.913"),
    "tags in capitals": ("_cell_length_c", "_CELL_LENGTH_C"),
    "a comment behind a value": ("90.0", "90.0 # degrees"),
    "stray text": ("loop_\n_atom_site_label", "stray\nloop_\n_atom_site_label"),
    "another block": ("data_quartz", "data_empty\n_a 1\ndata_quartz"),
    "a saved frame": ("data_quartz\n", "data_quartz\nsave_a\n_b 1\nsave_\n"),
    "letters beyond ASCII": ("data_quartz\n", "data_quartz\n_author 'Müller'\n"),
    "a form feed": ("5.405", "5.405\f"),
    "an uneven loop": ("0.1191\n", "\n"),
    "nearly a special position": ("0.4697(2) 0.0000", "0.4697(2) 0.0005"),
    "two atoms on one place": ("O1 O2- . 0.4135 0.2669 0.1191", "O1 O2- . 0.4697 0.0000 0.3333"),
    "two atoms that may be one": ("O1 O2- . 0.4135 0.2669 0.1191", "O1 O2- . 0.4717 0.0000 0.3333"),
    "a flat cell": ("_cell_angle_gamma 120", "_cell_angle_gamma 179.9"),
    "an impossible cell": ("_cell_angle_gamma 120", "_cell_angle_gamma 190"),
    "a powder pattern": ("data_quartz", "data_powder_pattern"),
}


@pytest.mark.parametrize("doubt", DOUBTS)
def test_doubts_are_left_to_the_patient_reading(doubt: str) -> None:
    old, new = DOUBTS[doubt]
    assert QUARTZ.count(old) == 1
    text = QUARTZ.replace(old, new)
    assert fast_crystal(text) is None
    assert outcome(text) == outcome(text, patient=True)


def outcome(text: str, patient: bool = False) -> Any:
    """What a reading gives: its atoms, or the code and words of its refusal."""
    try:
        crystal = patient_crystal(text) if patient else crystal_from_cif(text)
    except CrystalError as error:
        return error.code, error.reason
    return crystal.z.tolist(), np.round(crystal.pos, 6).tolist()


def test_thirds_of_few_digits_are_exact() -> None:
    text = QUARTZ.replace("0.4135 0.2669", "0.3333 0.6667")
    found = fast_crystal(text)
    assert found is not None
    assert len(found) == 3 + 6
    assert apart(found, patient_crystal(text)) < 1e-9


def test_changed_cifs_are_read_the_same_or_left() -> None:
    """Characters of a CIF cut, doubled and changed: what is still read fast is what the patient reading gives."""
    rng = random.Random(11)
    fast = 0
    for _ in range(1500):
        text = QUARTZ
        for _ in range(rng.randint(1, 3)):
            place = rng.randrange(len(text))
            change = rng.choice(["", "0", "1", ".", "-", "'", "\n", " ", "?", "_", "e", "(", "#", ";", "loop_\n"])
            text = text[:place] + change + text[place + rng.choice([0, 1, 1, 7]) :]
        found = fast_crystal(text)
        if found is not None:
            fast += 1
            assert apart(found, patient_crystal(text)) < 1e-4, text
    assert fast > 80


def test_close_pairs_are_found_in_large_cells_as_in_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    group = group_of(("x,y,z",))
    assert group is not None
    grid = np.stack(np.meshgrid(*[np.arange(5) / 5] * 3), axis=-1).reshape(-1, 3)
    near = np.concatenate([grid, [[0.9999, 0.0, -1e-18]]])
    for few in (1000, 1):
        monkeypatch.setattr(cif_symmetry, "_FEW", few)
        atoms = expanded(grid, group)
        assert atoms is not None
        assert len(atoms[0]) == 125
        assert expanded(near, group) is None


# --- JSON -----------------------------------------------------------------------------------------------------------


def site(symbol: str, place: float) -> dict[str, Any]:
    return {"species": [{"element": symbol, "occu": 1}], "abc": [place] * 3, "label": symbol, "properties": {}}


def document(row: int, **values: Any) -> dict[str, Any]:
    cell = {"matrix": [[4.0, 0, 0], [0, 4.0, 0], [0, 0, 4.0]], "pbc": [True, True, True]}
    structure = {"@module": "x", "lattice": cell, "sites": [site("Na", 0.0), site("Cl", 0.5)]}
    return {"material_id": f"mp-{row}", "structure": structure, "k": row + 0.5, **values}


def read_fast(text: bytes, path: Path, lines: bool = False) -> list[Item]:
    path.write_bytes(text)
    found = list((read_jsonl if lines else read_json)(path, Columns()))
    assert [parse(pickle.loads(pickle.dumps(block))) for block in found] == [parse(block) for block in found]
    return [item for block in found for item in parse(block)]


def read_exactly(text: bytes, path: Path) -> list[Item]:
    path.write_bytes(text)
    with open(path, "rb") as handle:
        return Documents(list(documents(handle, path)), Source(path.name, path.stem, Columns())).items()


def read_lines_exactly(text: bytes) -> list[Item]:
    numbered: list[tuple[int, Any]] = []
    for row, line in enumerate(text.split(b"\n"), 1):
        words = line.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace").strip()
        if words:
            try:
                numbered.append((row, parse_json(words)))
            except CrystalError as error:
                numbered.append((row, error))
    return Documents(numbered, Source("a.json", "a", Columns())).items()


ODDITIES: dict[str, Any] = {
    "escapes": {"note": 'a "quoted\\": text\n\u00e9'},
    "colons": {"note": ': :" :', ":": ":"},
    "not ASCII": {"név": "鉄"},
    "nothing": {"k": None},
    "NaN": {"k": float("nan")},
    "infinity": {"k": float("-inf")},
    "a huge integer": {"k": 10**30},
    "huge integers of atoms": {"magmoms": [10**25, 1]},
    "a huge integer as id": {"material_id": 10**30},
    "a large integer": {"k": 2**62},
    "an integer of thousands of digits": {"nested": {"x": []}},
    "many digits": {"k": "many digits"},
    "broken coordinates": {"structure": {"lattice": {"matrix": [[4.0, 0, 0]] * 3}, "sites": [site("Na", 0.0)]}},
    "no structure": {"structure": None},
}


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("oddity", ODDITIES)
def test_odd_documents_are_read_as_the_standard_library_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, oddity: str, indent: int | None
) -> None:
    monkeypatch.setattr(json_blocks, "SLICE", 2000)
    rows = [document(row) for row in range(20)]
    rows[7] |= ODDITIES[oddity]
    text = json.dumps(rows, indent=indent, ensure_ascii=False)
    text = text.replace("[]", "1" * 5000).replace('"k": "many digits"', f'"k": 0.{"3" * 40}')
    path = tmp_path / "a.json"
    assert read_fast(text.encode(), path) == read_exactly(text.encode(), path)
    if indent is None:
        lines = text[1:-1].replace('}, {"material_id"', '}\n{"material_id"').encode()
        assert lines.count(b"\n") == 19
        assert read_fast(lines, path, lines=True) == read_lines_exactly(lines)


@pytest.mark.parametrize("place", ["document", "site"])
def test_keys_given_twice_are_refused(tmp_path: Path, place: str) -> None:
    rows = [document(row) for row in range(20)]
    text = json.dumps(rows)
    key = '"material_id": "mp-7", ' if place == "document" else '"label": "Na", '
    start = text.index(key, text.index('"mp-7"') - 20)
    text = text[:start] + key + text[start:]
    for lines in (False, True):
        content = text[1:-1].replace('}, {"material_id"', '}\n{"material_id"') if lines else text
        items = read_fast(content.encode(), tmp_path / "a.json", lines)
        codes = [item.code for item in items if isinstance(item, SetAside)]
        assert codes == ["duplicate_key"]
        assert len(items) == 20


def test_damaged_json_is_read_as_by_the_exact_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes cut, doubled and changed, in slices of some documents: the same items, rows and words."""
    monkeypatch.setattr(json_blocks, "SLICE", 900)
    rng = random.Random(20261121)
    rows = [document(row, nested={"a": [1, {"b": row}]}) for row in range(12)]
    changes = [b"", b'"', b"\n", b"{", b"}", b"]", b"[", b",", b":", b"\\", b"\x00", b"\xff", b"1e999", b"NaN", b" "]
    changes += [b'"k": 1, ', b'{"material_id": "mp-x"},', b"\xef\xbb\xbf", b"nul", b"[" * 50]
    mapping = json.dumps({"data": rows})
    sources = [json.dumps(rows), json.dumps(rows, indent=1), "\n".join(map(json.dumps, rows)), mapping]
    kinds = set()
    for _ in range(300):
        text = bytearray(rng.choice(sources).encode())
        for _ in range(rng.randint(0, 3)):
            place = rng.randrange(len(text) + 1)
            text[place : place + rng.choice([0, 1, 8])] = rng.choice(changes)
        if rng.random() < 0.1:
            text = text.replace(b'"k":', b'"k": 1, "k":', 1)
        if rng.random() < 0.1:
            del text[rng.randrange(len(text)) :]
        path = tmp_path / "a.json"
        try:
            expected = read_exactly(bytes(text), path)
        except DataError:
            with pytest.raises(DataError, match="JSON"):
                read_fast(bytes(text), path)
            continue
        assert read_fast(bytes(text), path) == expected
        kinds |= {item.code for item in expected if isinstance(item, SetAside)}
        if not text.lstrip(b" \t\r\n\xef\xbb\xbf").startswith(b"["):
            assert read_fast(bytes(text), path, lines=True) == read_lines_exactly(bytes(text))
    assert {"bad_json", "duplicate_key", "truncated"} <= kinds


def test_documents_that_start_with_a_module_are_cut_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_blocks, "SLICE", 2000)
    rows = [{"@module": "emmet.core", "@class": "Doc", **document(row)} for row in range(40)]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(rows))
    found = list(read_json(path, Columns()))
    assert len(found) > 5
    assert all(isinstance(block, Elements) and not block.is_exact for block in found)
    assert [item.material_id for block in found for item in parse(block)] == [f"mp-{row}" for row in range(40)]


def test_the_real_export_needs_no_patience(real_data: Path) -> None:
    path = real_data / "elasticity.json.gz"
    found = list(blocks(path))
    assert all(isinstance(block, Elements) and not block.is_exact for block in found)
    items = [item for block in found for item in parse(block)]
    with gzip.open(path) as handle:
        for item, row in zip(items, orjson.loads(handle.read()), strict=True):
            assert isinstance(item, Record)
            assert item.material_id == row["material_id"]
            assert item.values["bulk_modulus.vrh"] == row["bulk_modulus"]["vrh"]
            lattice = np.array(row["structure"]["lattice"]["matrix"])
            assert np.abs(item.crystal.lattice - lattice).max() == 0
            given = np.array([each["abc"] for each in row["structure"]["sites"]]) @ lattice
            assert np.abs(item.crystal.pos - given).max() < 1e-9


# --- Parquet --------------------------------------------------------------------------------------------------------


def optimade(row: int) -> dict[str, Any]:
    return {
        "immutable_id": f"mp-{row}",
        "lattice_vectors": (np.eye(3) * (4 + row)).tolist(),
        "cartesian_site_positions": [[0.0, 0, 0], [2.0, 2.0, 2.0 + row]],
        "species_at_sites": ["Na", "Cl"],
        "band_gap": row / 2,
        "magmoms": [1.0, None],
    }


GAPS: dict[str, dict[str, Any]] = {
    "none": {},
    "no lattice": {"lattice_vectors": None},
    "two vectors": {"lattice_vectors": [[1.0, 0, 0], [0, 1.0, 0]]},
    "no position": {"cartesian_site_positions": None},
    "a position of two": {"cartesian_site_positions": [[0.0, 0], [1.0, 1.0]]},
    "an empty position": {"cartesian_site_positions": [[0.0, 0, 0], None]},
    "an empty number": {"cartesian_site_positions": [[0.0, 0, 0], [None, 1.0, 2.0]]},
    "not a number": {"cartesian_site_positions": [[0.0, 0, 0], [float("nan"), 1.0, 2.0]]},
    "an atom too many": {"species_at_sites": ["Na", "Cl", "Cl"]},
    "no species": {"species_at_sites": ["Na", None]},
    "no element": {"species_at_sites": ["Na", "Zz"]},
    "no atoms": {"species_at_sites": [], "cartesian_site_positions": []},
    "a bad id": {"immutable_id": "=1"},
}


@pytest.mark.parametrize("gap", GAPS)
def test_rows_with_gaps_are_read_as_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gap: str) -> None:
    rows = [optimade(row) for row in range(5)]
    rows[2] |= GAPS[gap]
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    fast = list(read(path))
    monkeypatch.setattr(parquet_blocks, "_crystals", lambda rows, columns: None)
    assert fast == list(read(path))
    assert [isinstance(item, Record) for item in fast] == [True, True, gap == "none", True, True]
    assert fast[4].values == {"band_gap": 2.0, "magmoms": [1.0, None]}  # type: ignore[union-attr]


def test_real_rows_are_read_as_documents(real_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (first, *_), path = blocks(real_data / "synthesizability.parquet"), real_data
    assert path.is_dir()
    fast = parse(first)
    assert parquet_blocks._crystals(first.rows, Columns()) is not None  # type: ignore[attr-defined]
    monkeypatch.setattr(parquet_blocks, "_crystals", lambda rows, columns: None)
    patient = parse(first)
    assert len(fast) == 256
    for one, other in zip(fast, patient, strict=True):
        assert isinstance(one, Record)
        assert isinstance(other, Record)
        assert one == other
        assert apart(one.crystal, other.crystal) == 0


# --- records --------------------------------------------------------------------------------------------------------


def test_records_are_equal_by_content() -> None:
    crystal = crystal_from(document(1)["structure"])
    shifted = Crystal(crystal.z, crystal.pos + 1e-3, crystal.lattice)
    record = Record("mp-1", crystal, {"k": float("nan")}, "a:1")
    assert record == Record("mp-1", Crystal(crystal.z, crystal.pos + 1e-9, crystal.lattice), {"k": float("nan")}, "a:1")
    assert record == pickle.loads(pickle.dumps(record))
    assert record == Record("mp-1", Crystal(crystal.z, -0.0 - crystal.pos * -1, crystal.lattice), record.values, "a:1")
    others = [Record("mp-2", crystal, record.values, "a:1"), Record("mp-1", crystal, record.values, "a:2")]
    others += [Record("mp-1", shifted, record.values, "a:1"), Record("mp-1", crystal, {"k": 1.0}, "a:1")]
    assert all(record != other for other in others)
    assert len({record, *others}) == 5
    assert len(record.digest) == 16


def test_structures_are_made_when_they_are_asked_for() -> None:
    record = Record("mp-1", crystal_from(document(1)["structure"]))
    assert "structure" not in record.__dict__
    structure = record.structure
    assert structure is record.structure
    assert isinstance(structure, Structure)
    assert structure.formula == "Na1 Cl1"
    assert structure.frac_coords == pytest.approx(np.array([[0.0] * 3, [0.5] * 3]), abs=1e-12)
