import numpy as np
import orjson
import pytest
from pymatgen.core import Lattice, Structure

from cgnn.data.labels import label_of, read_labels
from cgnn.data.reading.gate import check_structure
from cgnn.data.records import Record, read
from cgnn.data.store import GraphStore, StoreWriter
from cgnn.errors import DataError
from cgnn.graph.build import GraphBuilder
from cgnn.targets import Target

BULK = Target(name="bulk_modulus", column="k_vrh", unit="GPa", transform="log10")
ENERGY = Target(name="energy", unit="eV/atom")
METAL = Target(name="is_metal", task="binary")
SYSTEM = Target(name="system", task="multiclass", classes=("cubic", "hexagonal"))
CHARGE = Target(name="charge", level="atom", unit="e")


def crystal(atoms=1):
    return Structure(Lattice.cubic(3.0 * atoms), ["Cu"] * atoms, [[i / atoms, 0, 0] for i in range(atoms)])


@pytest.fixture
def stored(tmp_path):
    """Make a store of crystals with given values; every second one has two atoms."""

    def make(rows):
        with StoreWriter(tmp_path / "store", "key") as writer:
            for number, values in enumerate(rows):
                structure = crystal(1 + number % 2)
                record = Record(f"mp-{number}", check_structure(structure), values, f"x.json:{number}")
                writer.add(record, GraphBuilder().arrays(structure))
        return GraphStore(tmp_path / "store")

    return make


def test_crystal_and_atom_level(stored):
    labels = read_labels(
        stored(
            [
                {"k_vrh": 100.0, "is_metal": True, "system": "cubic", "charge": [0.5]},
                {"k_vrh": None, "is_metal": 0, "charge": [1.0, -1.0]},
                {"energy": -3.0, "system": "hexagonal"},
                {"k_vrh": 30, "energy": -1},
            ]
        ),
        [BULK, ENERGY, METAL, SYSTEM, CHARGE],
    )
    nan = np.nan
    np.testing.assert_array_equal(labels.values["bulk_modulus"], [100, nan, nan, 30])
    np.testing.assert_array_equal(labels.values["energy"], [nan, nan, -3, -1])
    np.testing.assert_array_equal(labels.values["is_metal"], [1, 0, nan, nan])
    np.testing.assert_array_equal(labels.values["system"], [0, nan, 1, nan])
    np.testing.assert_array_equal(labels.values["charge"], [0.5, 1, -1, nan, nan, nan])
    assert labels.ids == ["mp-0", "mp-1", "mp-2", "mp-3"]
    assert labels.rows.tolist() == [0, 1, 2, 3]
    assert labels.set_aside == []
    assert labels.warnings == []


BAD = [float("nan"), float("inf"), "12.5", "n/a", True, [1.0], 10**400, 1e31, 0, -5.0]


def test_bad_labels_are_set_aside_by_id(stored):
    rows = [{"k_vrh": 50.0 + number} for number in range(40)]
    places = range(1, 40, 4)
    for place, label in zip(places, BAD, strict=True):
        rows[place]["k_vrh"] = label
    rows[0]["k_vrh"] = None
    labels = read_labels(stored(rows), [BULK])
    assert [aside.material_id for aside in labels.set_aside] == ["mp-0", *(f"mp-{place}" for place in places)]
    assert [aside.code for aside in labels.set_aside] == ["no_label", *["bad_label"] * len(BAD)]
    assert all(aside.stage == "label" and "k_vrh" in aside.reason for aside in labels.set_aside)
    assert all(len(aside.reason) < 200 for aside in labels.set_aside)
    assert labels.set_aside[1].source == "x.json:1"
    assert labels.rows.tolist() == [row for row in range(1, 40) if row not in places]
    values = labels.values["bulk_modulus"]
    np.testing.assert_array_equal(values[labels.rows], 50.0 + labels.rows)
    assert np.isnan(np.delete(values, labels.rows)).all()


def test_one_bad_label_sets_the_crystal_aside(stored):
    labels = read_labels(stored([{"k_vrh": 50.0, "energy": "x"}, {"k_vrh": 60.0, "energy": -1.0}]), [BULK, ENERGY])
    assert [aside.material_id for aside in labels.set_aside] == ["mp-0"]
    assert np.isnan(labels.values["bulk_modulus"][0])


@pytest.mark.parametrize("label", [[1.0], [1.0, 2.0, 3.0], 1.0, "x", [1.0, "x"], [1.0, float("nan")], []])
def test_bad_atom_labels(label):
    with pytest.raises(DataError, match="column 'charge': "):
        label_of(CHARGE, {"charge": label}, 2)


def test_atoms_without_a_label():
    np.testing.assert_array_equal(label_of(CHARGE, {"charge": [1.0, None]}, 2), [1.0, np.nan])
    np.testing.assert_array_equal(label_of(CHARGE, {}, 2), [np.nan, np.nan])
    np.testing.assert_array_equal(label_of(BULK, {}, 2), [np.nan])


ODD = [None, "", 0, 1, -1, 2.5, 0.0, -0.0, 5e-324, 1e30, -1e30, 9.9e29, 1e-9, float("nan"), float("inf"), 10**400]
ODD += [2**53, 2**53 + 1, True, False, "1", "true", "TRUE", "cubic", "12.5", [], [1.0], [1.0, 2.0], [1.0, None], "x"]
KINDS = [
    Target(name="y"),
    *(Target(name="y", transform=name) for name in ("log10", "log", "sqrt", "nonnegative")),
    Target(name="y", task="binary"),
    Target(name="y", task="multiclass", classes=("cubic", "1", "True", "2.5")),
    Target(name="y", level="atom"),
]


@pytest.mark.parametrize("other_columns", [0, 300])
@pytest.mark.parametrize("target", KINDS, ids=lambda target: f"{target.task}-{target.transform}-{target.level}")
def test_columns_and_records_tell_the_same(stored, rng, target, other_columns):
    """Labels read from packed columns are those that one record after the other gives, whatever stands there."""
    first = {f"column-{number}": 1.0 for number in range(other_columns)}  # more than are packed
    places = rng.permutation(len(ODD)).tolist()
    rows = [first, *({"y": ODD[place]} for place in places), {}, {"z": 5.0}, {"y": 1, "z": "x"}, {"y": [1.0], "z": 2}]
    other = Target(name="other", column="z")
    store = stored(rows)
    found = read_labels(store, [target, other])
    expected, codes = [], []
    for number, row in enumerate(rows):
        atoms = 1 + number % 2
        try:
            labels = [label_of(kind, row, atoms if kind.level == "atom" else 1) for kind in (target, other)]
        except DataError as error:
            labels, code = (
                [np.full(atoms if target.level == "atom" else 1, np.nan), [np.nan]],
                ("bad_label", str(error)),
            )
        else:
            code = ("no_label", "no value of y, z") if np.isnan(np.concatenate(labels)).all() else None
        expected.append(labels)
        codes.append(code)
    np.testing.assert_array_equal(found.values["y"], np.concatenate([labels[0] for labels in expected]))
    np.testing.assert_array_equal(found.values["other"], np.concatenate([labels[1] for labels in expected]))
    assert found.rows.tolist() == [row for row, code in enumerate(codes) if code is None]
    assert [(aside.code, aside.reason) for aside in found.set_aside] == [code for code in codes if code]
    assert [aside.source for aside in found.set_aside] == [f"x.json:{row}" for row, code in enumerate(codes) if code]


COLUMNS = ["k_vrh", "g_vrh", "bulk_modulus.vrh", "shear_modulus.vrh", "formation_energy_per_atom", "band_gap", "nsites"]
TYPOS = {
    "k_vhr": "k_vrh", "kvrh": "k_vrh", "K_VRH": "k_vrh", "g_vrhh": "g_vrh", "bulk_modulus": "bulk_modulus.vrh",
    "bulk_modulus_vrh": "bulk_modulus.vrh", "bulk_moduls.vrh": "bulk_modulus.vrh", "shear_modulus": "shear_modulus.vrh",
    "shear.modulus.vrh": "shear_modulus.vrh", "formation_energy": "formation_energy_per_atom",
    "formation_energy_per_atm": "formation_energy_per_atom", "bandgap": "band_gap", "band-gap": "band_gap",
    "Band_Gap": "band_gap", "n_sites": "nsites", "nsite": "nsites",
}  # fmt: skip


@pytest.mark.parametrize("typo", TYPOS)
def test_unknown_columns(stored, typo):
    store = stored([dict.fromkeys(COLUMNS, 1.0)])
    expected = rf"target 'y': unknown column '{typo}'; did you mean '{TYPOS[typo]}'\? \(known: .*nsites"
    with pytest.raises(DataError, match=expected):
        read_labels(store, [Target(name="y", column=typo)])


def test_no_usable_label(stored):
    with pytest.raises(DataError, match=r"no crystal has a usable label; the first: no value of k_vrh"):
        read_labels(stored([{"k_vrh": None}, {"k_vrh": None}]), [BULK])


def warnings_of(stored, values, **target):
    target = Target(**{"name": "y", "unit": "GPa", **target})
    return read_labels(stored([{"y": value} for value in values]), [target]).warnings


def test_unit_slips(stored, rng):
    moduli = list(rng.uniform(20, 300, 300))
    assert warnings_of(stored, moduli, transform="log10") == []
    for place in (3, 30, 77):
        moduli[place] *= 1e9  # Pa
    (message,) = warnings_of(stored, moduli, transform="log10")
    assert "3 values lie outside 0.01 to 2000 GPa" in message
    assert f"mp-3 ({moduli[3]:.4g}), mp-30 ({moduli[30]:.4g}), mp-77" in message
    energies = list(rng.uniform(-4, 1, 300))
    assert warnings_of(stored, energies, unit="eV/atom") == []
    energies[5] = -2500.0  # meV
    (message,) = warnings_of(stored, energies, unit="eV/atom")
    assert "1 values lie outside -12 to 12 eV/atom, perhaps in another unit: mp-5 (-2500)" in message
    assert warnings_of(stored, [1e9, 2e9], unit="furlong") == []


def test_logarithm_is_suggested(stored, rng):
    moduli = list(10 ** rng.uniform(0, 2.8, 200))
    (message,) = warnings_of(stored, moduli)
    assert "transform: log10" in message
    assert warnings_of(stored, moduli, transform="log10") == []
    assert warnings_of(stored, list(rng.uniform(50, 150, 200))) == []
    assert warnings_of(stored, [-1.0, *moduli[:50]], unit="") == []


def test_constant_target(stored):
    (message,) = warnings_of(stored, [5.0, 5.0, 5.0])
    assert "has the same value for all crystals" in message


@pytest.mark.slow
def test_no_false_alarms_on_real_moduli(real_data, tmp_path):
    documents = orjson.loads(__import__("gzip").decompress((real_data / "elasticity.json.gz").read_bytes()))[:1000]
    (tmp_path / "export.json").write_bytes(orjson.dumps(documents))
    records = [item for item in read(tmp_path / "export.json") if isinstance(item, Record)]
    with StoreWriter(tmp_path / "store", "key") as writer:
        for record in records:
            writer.add(record, GraphBuilder().arrays(record.structure))
    target = BULK.model_copy(update={"column": "bulk_modulus.vrh"})
    assert read_labels(GraphStore(tmp_path / "store"), [target]).warnings == []
