import json
import random
from dataclasses import replace

import pytest

from cgnn.config import SplitConfig
from cgnn.data.split import (
    CrystalSummary,
    Split,
    chemical_system,
    duplicate_groups,
    reduced_formula,
    report,
    split,
    stoichiometry,
)
from cgnn.errors import ConfigError, DataError

ELEMENTS = ["Al", "Cu", "Fe", "Ni", "O", "Si", "Ti"]


def crystals(number: int, seed: int = 0) -> list[CrystalSummary]:
    """Different crystals of one, two or three elements, several of a formula."""
    draw = random.Random(seed)
    return [
        CrystalSummary(
            f"mp-{index}",
            {element: draw.randint(1, 3) for element in draw.sample(ELEMENTS, draw.randint(1, 3))},
            draw.uniform(8, 30),
            (draw.uniform(2, 3), draw.uniform(3, 4)),
        )
        for index in range(number)
    ]


def disguised(crystal: CrystalSummary, draw: random.Random) -> list[CrystalSummary]:
    """The same crystal as a supercell, rotated, and under an alias: invariants equal up to rounding."""

    def rounded(value: float) -> float:
        return value * (1 + draw.uniform(-1e-9, 1e-9))

    return [
        CrystalSummary(
            f"{name}-{crystal.material_id}",
            {element: factor * count for element, count in crystal.composition.items()},
            rounded(crystal.volume_per_atom),
            tuple(rounded(value) for value in crystal.shells),
        )
        for name, factor in (("super", 8), ("rotated", 1), ("alias", 1))
    ]


def parts_of(found: Split) -> dict[str, str]:
    return {name: part for part in ("train", "val", "test") for name in getattr(found, part)}


def test_formulas():
    crystal = CrystalSummary("x", {"O": 6, "Al": 4, "H": 0}, 10.0, ())
    assert reduced_formula(crystal) == "Al2O3"
    assert chemical_system(crystal) == "Al-O"
    assert stoichiometry(crystal) == "2:3"


@pytest.mark.parametrize("method", ["random", "kfold", "element"])
def test_disguised_duplicates_stay_together(method):
    draw = random.Random(1)
    originals = crystals(200)
    families = [[crystal, *disguised(crystal, draw)] for crystal in originals]
    config = SplitConfig(method=method, val=0.2, test=0.2, element="O")
    part = parts_of(split(config, [member for family in families for member in family]))
    parted = [family for family in families if len({part[member.material_id] for member in family}) > 1]
    assert parted == []


def test_duplicates_may_be_parted_on_request():
    draw = random.Random(1)
    families = [[crystal, *disguised(crystal, draw)] for crystal in crystals(50)]
    config = SplitConfig(val=0.2, test=0.2, keep_duplicates_together=False)
    part = parts_of(split(config, [member for family in families for member in family]))
    assert any(len({part[member.material_id] for member in family}) > 1 for family in families)


def test_duplicates_need_formula_volume_and_shells_alike():
    first = CrystalSummary("a", {"Fe": 1}, 11.0, (2.48, 2.87))
    same = replace(first, material_id="b", composition={"Fe": 2}, volume_per_atom=11.005)
    chained = replace(first, material_id="c", volume_per_atom=11.012)
    others = [
        replace(first, material_id="formula", composition={"Ni": 1}),
        replace(first, material_id="volume", volume_per_atom=11.1),
        replace(first, material_id="shells", shells=(2.48, 2.9)),
        replace(first, material_id="length", shells=(2.48,)),
    ]
    groups = duplicate_groups([*others, chained, same, first])
    assert sorted(groups) == [("a", "b", "c"), ("formula",), ("length",), ("shells",), ("volume",)]


def test_duplicates_are_found_across_other_polymorphs_of_equal_volume():
    """What lies between two duplicates in the order of one quantity must not hide them."""
    first = CrystalSummary("a", {"Si": 1}, 20.0, (2.0, 3.0))
    between = replace(first, material_id="b", volume_per_atom=20.001, shells=(2.0, 3.5))
    second = replace(first, material_id="c", volume_per_atom=20.002)
    assert sorted(duplicate_groups([first, between, second])) == [("a", "c"), ("b",)]


@pytest.mark.parametrize("number", [103, 500])
def test_random_shares_are_exact_for_single_crystals(number):
    found = split(SplitConfig(val=0.1, test=0.2), crystals(number))
    assert (len(found.val), len(found.test)) == (round(0.1 * number), round(0.2 * number))


def test_another_seed_gives_another_split():
    data = crystals(100)
    assert split(SplitConfig(seed=0), data).val != split(SplitConfig(seed=1), data).val


def test_a_new_crystal_moves_hardly_any_other():
    data = crystals(200)
    before, after = (parts_of(split(SplitConfig(test=0.2), part)) for part in (data[:-1], data))
    assert sum(before[name] != after[name] for name in before) <= 2


@pytest.mark.parametrize("together", [True, False])
def test_folds_partition_the_data(together):
    data = [member for crystal in crystals(37) for member in (crystal, *disguised(crystal, random.Random(0)))]
    configs = [SplitConfig(method="kfold", folds=5, fold=fold, keep_duplicates_together=together) for fold in range(5)]
    tests = [split(config, data).test for config in configs]
    assert sorted(name for test in tests for name in test) == sorted(c.material_id for c in data)
    sizes = [len(test) for test in tests]
    assert max(sizes) - min(sizes) <= (4 if together else 1)


def test_kfold_validation_is_a_share_of_the_rest():
    found = split(SplitConfig(method="kfold", folds=4, fold=2, val=0.2), crystals(100))
    assert (len(found.train), len(found.val), len(found.test)) == (60, 15, 25)
    assert split(SplitConfig(method="kfold", val=0.0), crystals(100)).val == ()


def test_element_is_left_out():
    data = crystals(100)
    found = split(SplitConfig(method="element", element="Fe"), data)
    assert set(found.test) == {c.material_id for c in data if "Fe" in c.composition}
    assert report(found, data)["test"]["elements_not_in_train"] == ["Fe"]


def test_element_not_in_the_data():
    with pytest.raises(DataError, match=r"unknown element 'fe'; did you mean 'Fe'\?"):
        split(SplitConfig(method="element", element="fe"), crystals(50))


def test_element_in_all_crystals():
    iron = [replace(crystal, composition={"Fe": 1}) for crystal in crystals(10)]
    with pytest.raises(DataError, match="too few crystals for training and validation beside the test part"):
        split(SplitConfig(method="element", element="Fe"), iron)


@pytest.mark.parametrize(
    ("config", "number", "match"),
    [
        (SplitConfig(), 0, "no crystals"),
        (SplitConfig(), 1, "1 crystals in 1 groups that stay together, at least 2"),
        (SplitConfig(test=0.1), 2, "at least 3 groups"),
        (SplitConfig(method="kfold", folds=5), 4, "5 folds: 4 crystals"),
        (SplitConfig(method="kfold", folds=2), 2, "beside the test part"),
    ],
)
def test_too_few_crystals(config, number, match):
    with pytest.raises(DataError, match=match):
        split(config, crystals(number))


def test_smallest_data_still_fill_every_part():
    found = split(SplitConfig(val=0.1, test=0.1), crystals(3))
    assert [len(part) for part in (found.train, found.val, found.test)] == [1, 1, 1]


def test_large_groups_leave_something_for_every_part():
    """Two of three compositions would meet the share of the test part; validation and training need them."""
    data = [
        CrystalSummary(f"{element}{index}", {element: 1}, 10.0 + index, (2.0,))
        for element, number in (("Fe", 1), ("Ni", 1), ("Cu", 8))
        for index in range(number)
    ]
    found = split(SplitConfig(method="composition", val=0.1, test=0.2), data)
    assert sorted(len(part) for part in (found.train, found.val, found.test)) == [1, 1, 8]
    assert len(found.train) == 8


def test_shares_as_close_as_groups_allow():
    """What is missing is at most half of the smallest group left for training."""
    for seed in range(20):
        data = crystals(150, seed)
        found = split(SplitConfig(method="stoichiometry", val=0.0, test=0.3, seed=seed), data)
        key = {c.material_id: stoichiometry(c) for c in data}
        trained = [key[name] for name in found.train]
        assert 2 * abs(len(found.test) - 45) <= min(trained.count(name) for name in set(trained))


def test_repeated_id_and_unknown_method():
    data = crystals(5)
    with pytest.raises(DataError, match=r"'mp-0' occur more than once"):
        split(SplitConfig(), [*data, data[0]])
    with pytest.raises(ConfigError, match=r"unknown split method 'radnom'; did you mean 'random'\?"):
        split(SplitConfig(method="radnom"), data)


def test_report_counts_overlap():
    data = [
        CrystalSummary("a", {"Fe": 1, "O": 1}, 10.0, (2.0,)),
        CrystalSummary("b", {"Fe": 2, "O": 2}, 10.0, (2.0,)),
        CrystalSummary("c", {"Fe": 2, "O": 3}, 11.0, (2.0,)),
        CrystalSummary("d", {"Ni": 1, "O": 1}, 11.0, (2.0,)),
        CrystalSummary("e", {"Ni": 1}, 11.0, (2.0,)),
    ]
    found = report(Split(train=("a",), test=("b", "c", "d", "e")), data)
    assert found == {
        "counts": {"train": 1, "val": 0, "test": 4, "left_out": 0},
        "test": {
            "formula_in_train": 0.25,
            "chemical_system_in_train": 0.5,
            "stoichiometry_in_train": 0.5,
            "duplicate_in_train": 0.25,
            "elements_not_in_train": ["Ni"],
        },
    }


def test_a_stored_split_is_the_file_of_another_run(tmp_path):
    data = crystals(60)
    first = split(SplitConfig(method="composition", test=0.2, seed=7), data)
    first.save(tmp_path / "split.json")
    assert Split.load(tmp_path / "split.json") == first
    again = split(SplitConfig(method="file", file=str(tmp_path / "split.json")), data)
    assert (again.train, again.val, again.test) == (first.train, first.val, first.test)
    assert (again.method, again.left_out) == ("file", 0)


def test_file_leaves_out_what_it_does_not_name(tmp_path):
    path = tmp_path / "ids.json"
    path.write_text(json.dumps({"train": ["mp-1", "mp-0"], "test": ["mp-4"]}))
    found = split(SplitConfig(method="file", file=str(path)), crystals(10))
    assert (found.train, found.val, found.test, found.left_out) == (("mp-0", "mp-1"), (), ("mp-4",), 7)


def test_file_with_ids_that_are_not_in_the_data(tmp_path):
    path = tmp_path / "ids.json"
    path.write_text(json.dumps({"train": ["mp-0", *(f"x{index}" for index in range(5))]}))
    with pytest.raises(DataError, match=r"5 of 6 ids are not in the data: 'x0', 'x1', 'x2' and 2 more"):
        split(SplitConfig(method="file", file=str(path)), crystals(10))


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("{", "not valid JSON"),
        ("[]", "expected lists of ids"),
        ('{"train": ["a"], "tset": ["b"]}', r"unknown key 'tset'; did you mean 'test'\?"),
        ('{"train": ["a"], "val": ["a"]}', r"1 ids stand there twice, such as 'a' \(train and val\)"),
        ('{"train": ["a", "a"]}', r"'a' \(train and train\)"),
        ('{"train": "a"}', "train: expected a list of ids"),
        ('{"train": [1]}', "train: expected a list of ids"),
        ('{"val": ["a"]}', "under 'train', found none"),
        ('{"train": ["a"], "seed": "0"}', "'seed' and 'left_out' whole numbers"),
        ('{"train": ["a"], "method": null}', "'method' must be text"),
    ],
)
def test_bad_files_of_ids(tmp_path, content, match):
    path = tmp_path / "ids.json"
    path.write_text(content)
    with pytest.raises(DataError, match=match) as caught:
        Split.load(path)
    assert str(path) in str(caught.value)


def test_no_such_file(tmp_path):
    with pytest.raises(DataError, match=r"none\.json: could not be read: No such file"):
        Split.load(tmp_path / "none.json")


def kinds_of(number: int) -> list[CrystalSummary]:
    return [replace(c, prototype=f"p{index % 20}", value=float(index)) for index, c in enumerate(crystals(number))]


def test_prototypes_linked_by_a_duplicate_stay_together():
    """At the edge of a tolerance one crystal may be given two prototypes; then both stay on one side."""
    data = kinds_of(100)
    linked = [*data, replace(data[3], material_id="again", prototype="p7")]
    for seed in range(10):
        part = parts_of(split(SplitConfig(method="prototype", val=0.2, test=0.2, seed=seed), linked))
        assert len({part[c.material_id] for c in linked if c.prototype in ("p3", "p7")}) == 1
    config = SplitConfig(method="prototype", val=0.2, test=0.2, keep_duplicates_together=False)
    parts = [parts_of(split(config.model_copy(update={"seed": seed}), linked)) for seed in range(10)]
    assert any(part["again"] != part["mp-3"] for part in parts)


@pytest.mark.parametrize("direction", ["high", "low"])
def test_extrapolation_keeps_out_the_outermost(direction):
    data = kinds_of(100)
    config = SplitConfig(method="extrapolation", target="k", direction=direction, test=0.1, val=0.1)
    found = split(config, random.Random(0).sample(data, 100))
    outer = range(90, 100) if direction == "high" else range(10)
    assert set(found.test) == {f"mp-{index}" for index in outer}
    other = split(config.model_copy(update={"seed": 1}), data)
    assert other.test == found.test
    assert other.val != found.val


def test_extrapolation_leaves_unknown_values_in_training():
    data = [replace(crystal, value=None) for crystal in kinds_of(30)]
    config = SplitConfig(method="extrapolation", target="k", test=0.1)
    with pytest.raises(DataError, match="no crystal has a value of 'k'"):
        split(config, data)
    assert split(config, [*data, replace(data[0], material_id="x", volume_per_atom=99.0, value=1.0)]).test == ("x",)


def test_column_of_parts():
    words = ["train", "Training", " val ", "valid", "validation", "test", None, ""]
    data = [replace(crystal, value=word) for crystal, word in zip(crystals(8), words, strict=True)]
    found = split(SplitConfig(method="column", column="part"), data)
    assert (found.train, found.val, found.test) == (("mp-0", "mp-1"), ("mp-2", "mp-3", "mp-4"), ("mp-5",))
    assert found.left_out == 2
    with pytest.raises(DataError, match="column 'part' puts no crystal into 'train'"):
        split(SplitConfig(method="column", column="part"), data[2:])


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"method": "column"}, "method 'column' needs 'column'"),
        ({"method": "extrapolation", "test": 0.1}, "needs 'target' and a 'test' share"),
        ({"method": "extrapolation", "target": "k"}, "needs 'target' and a 'test' share"),
    ],
)
def test_settings_that_lack_something(settings, match):
    with pytest.raises(ValueError, match=match):
        SplitConfig(**settings)
