"""Prototypes: what shares a name, and what does not."""

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from cgnn.config import GraphConfig, SplitConfig
from cgnn.data.dataset import CrystalDataset
from cgnn.data.details import with_details
from cgnn.data.prototype import prototype
from cgnn.data.reading.gate import check_structure
from cgnn.data.records import Record
from cgnn.data.split import report, split
from cgnn.data.store import GraphStore, StoreWriter
from cgnn.errors import DataError
from cgnn.graph.build import GraphBuilder
from cgnn.targets import Target

CUBIC = Lattice.cubic(4.0)
RUTILE = Structure.from_spacegroup(
    "P4_2/mnm", Lattice.tetragonal(4.6, 2.96), ["Ti", "O"], [[0, 0, 0], [0.305, 0.305, 0]]
)
QUARTZ = [[0.4697, 0, 1 / 3], [0.4135, 0.2669, 0.2142]]
HEXAGONAL = Lattice.hexagonal(4.916, 5.405)
STRUCTURES = {
    "rock salt": Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.6), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]),
    "zincblende": Structure.from_spacegroup("F-43m", Lattice.cubic(5.4), ["Zn", "S"], [[0, 0, 0], [0.25, 0.25, 0.25]]),
    "fluorite": Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.5), ["Ca", "F"], [[0, 0, 0], [0.25, 0.25, 0.25]]),
    "caesium chloride": Structure(CUBIC, ["Cs", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]),
    "perovskite": Structure.from_spacegroup(
        "Pm-3m", CUBIC, ["Sr", "Ti", "O"], [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0]]
    ),
    "rutile": RUTILE,
    "quartz": Structure.from_spacegroup("P3_121", HEXAGONAL, ["Si", "O"], QUARTZ),
    "wurtzite": Structure.from_spacegroup(
        "P6_3mc", Lattice.hexagonal(3.82, 6.26), ["Zn", "S"], [[1 / 3, 2 / 3, 0], [1 / 3, 2 / 3, 0.375]]
    ),
}


def arrays(structure: Structure) -> dict[str, np.ndarray]:
    z = np.array(structure.atomic_numbers)
    return {"z": z, "pos": structure.cart_coords, "lattice": structure.lattice.matrix[None]}


def disguised(structure: Structure, rng: np.random.Generator) -> dict[str, Structure]:
    shifted = structure.copy()
    shifted.translate_sites(range(len(structure)), [0.5, 0.5, 0.5])
    skewed = structure.copy()
    skewed.make_supercell([[1, 1, 0], [0, 1, 0], [0, 0, 2]])
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    mirrored = Structure(structure.lattice.matrix @ turn, structure.species, structure.frac_coords)
    order = rng.permutation(len(structure))
    return {
        "primitive": structure.get_primitive_structure(),
        "supercell": structure * (2, 1, 2),
        "skewed supercell": skewed,
        "another origin": shifted,
        "turned or mirrored": mirrored,
        "another order": Structure.from_sites([structure[int(place)] for place in order]),
        "larger": Structure(structure.lattice.scale(1.2 * structure.volume), structure.species, structure.frac_coords),
        "shaken": structure.copy().perturb(0.003),
    }


@pytest.mark.parametrize("name", STRUCTURES)
def test_one_name_in_every_description(name, rng):
    expected = prototype(arrays(STRUCTURES[name]))
    found = {what: prototype(arrays(other)) for what, other in disguised(STRUCTURES[name], rng).items()}
    assert found == dict.fromkeys(found, expected)


def test_each_has_a_name_of_its_own():
    names = {prototype(arrays(structure)) for structure in STRUCTURES.values()}
    assert len(names) == len(STRUCTURES)
    assert prototype(arrays(STRUCTURES["rock salt"])) == "1:1 225 4*-3mm 4*-3mm"


@pytest.mark.parametrize("elements", [("Mg", "O"), ("Cl", "Na")])
def test_elements_have_no_names(elements):
    other = Structure.from_spacegroup("Fm-3m", Lattice.cubic(4.2), elements, [[0, 0, 0], [0.5, 0.5, 0.5]])
    assert prototype(arrays(other)) == prototype(arrays(STRUCTURES["rock salt"]))


def test_right_and_left_quartz():
    left = Structure.from_spacegroup("P3_221", HEXAGONAL, ["Si", "O"], [[x, y, -z] for x, y, z in QUARTZ])
    assert len(left) == len(STRUCTURES["quartz"]) == 9
    assert prototype(arrays(left)) == prototype(arrays(STRUCTURES["quartz"]))


def test_no_symmetry_found_leaves_the_formula(monkeypatch):
    monkeypatch.setattr("spglib.get_symmetry_dataset", lambda *_, **__: None)
    assert prototype(arrays(RUTILE)) == "1:2"


TARGET = Target(name="bulk", column="k", unit="GPa")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    path = tmp_path_factory.mktemp("store") / "store"
    builder = GraphBuilder(GraphConfig())
    pairs = [("Na", "Cl"), ("Mg", "O"), ("Ca", "S"), ("Sr", "Se"), ("Ti", "C"), ("Ti", "N")]
    with StoreWriter(path, "key") as writer:
        for number, (kind, template) in enumerate(STRUCTURES.items()):
            for other, pair in enumerate(pairs):
                structure = template.copy()
                old = [element.symbol for element in structure.elements]
                structure.replace_species(dict(zip(old, [*pair, "F"], strict=False)))
                k = 10.0 * number + other
                values = {
                    "k": k,
                    "g": None if other == 5 else -k,
                    "half": "Train" if number < 6 else "valid",
                    "odd": "x",
                }
                record = Record(f"{kind}-{other}", check_structure(structure), values)
                writer.add(record, builder.arrays(structure))
    return CrystalDataset(GraphStore(path), [TARGET])


def test_prototypes_stay_together(dataset):
    config = SplitConfig(method="prototype", val=0.2, test=0.2)
    crystals = dataset.summaries(config)
    found = split(config, crystals)
    kinds = [{name.rpartition("-")[0] for name in part} for part in (found.train, found.val, found.test)]
    assert sum(map(len, kinds)) == len(STRUCTURES)
    assert [len(part) for part in (found.train, found.val, found.test)] == [24, 12, 12]
    said = report(found, crystals)
    assert said["test"]["prototype_in_train"] == said["val"]["prototype_in_train"] == 0
    assert split(config, crystals[::-1]) == found


def test_prototypes_are_found_only_where_the_method_asks(dataset):
    assert {crystal.prototype for crystal in dataset.summaries(SplitConfig())} == {None}
    assert "prototype_in_train" not in report(split(SplitConfig(), dataset.summaries()), dataset.summaries())["val"]
    with pytest.raises(DataError, match="needs summaries that name it"):
        split(SplitConfig(method="prototype"), dataset.summaries())


@pytest.mark.parametrize(("target", "number"), [("bulk", 7), ("k", 7), ("g", 0)])
def test_hardest_are_kept_out(dataset, target, number):
    """``g`` is the negative of ``bulk``, and unknown for one crystal of each kind."""
    config = SplitConfig(method="extrapolation", target=target, test=0.1, val=0.1)
    found = split(config, dataset.summaries(config))
    kind = list(STRUCTURES)[number]
    numbers = (1, 2, 3, 4, 5) if number else (0, 1, 2, 3, 4)
    assert found.test == tuple(f"{kind}-{other}" for other in numbers)
    assert len(found.val) == 5


def test_softest_are_kept_out(dataset):
    config = SplitConfig(method="extrapolation", target="bulk", direction="low", test=0.1)
    assert found_kinds(split(config, dataset.summaries(config)).test) == {"rock salt"}


def found_kinds(names):
    return {name.rpartition("-")[0] for name in names}


def test_parts_of_a_column(dataset):
    config = SplitConfig(method="column", column="half")
    found = split(config, dataset.summaries(config))
    assert found_kinds(found.val) == {"quartz", "wurtzite"}
    assert (len(found.train), len(found.test), found.left_out) == (36, 0, 0)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"method": "column", "column": "hlaf"}, r"unknown column 'hlaf'; did you mean 'half'\?"),
        ({"method": "column", "column": "odd"}, "column 'odd' is 'x', expected one of train, training, val"),
        ({"method": "extrapolation", "target": "half", "test": 0.1}, "'half' is 'Train', not a number"),
        ({"method": "extrapolation", "target": "bulks", "test": 0.1}, "unknown column 'bulks'"),
    ],
)
def test_columns_that_do_not_fit(dataset, settings, match):
    config = SplitConfig(**settings)
    with pytest.raises(DataError, match=match):
        split(config, dataset.summaries(config))


def test_details_of_some_rows(dataset):
    config = SplitConfig(method="column", column="half")
    some = with_details(dataset.summaries()[40:42], config, dataset.store, dataset.rows[40:42], [TARGET])
    assert [crystal.value for crystal in some] == ["valid", "valid"]
