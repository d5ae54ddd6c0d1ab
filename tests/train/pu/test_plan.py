"""Which crystals each bag sees: repeatable, apart, and refused where there are too few."""

import numpy as np
import pytest

from cgnn.config import PUConfig
from cgnn.data.summary import CrystalSummary
from cgnn.errors import CheckpointError, DataError
from cgnn.train.pu.duplicates import find_duplicates
from cgnn.train.pu.plan import Plan

ELEMENTS = ("Al", "Cu", "Fe", "Mg", "Ni", "Si", "Ti", "Zn")


def crystal(name, formula, volume=10.0):
    return CrystalSummary(name, formula, volume, (2.0, 2.0))


def crystals(number, first=0):
    """Different crystals: no two have the same composition."""
    return [
        crystal(f"c{n:03d}", {ELEMENTS[n % 8]: 1 + n // 8, ELEMENTS[(n + 1) % 8]: 31})
        for n in range(first, first + number)
    ]


ALL = crystals(120)
POSITIVES = [c.material_id for c in ALL[:40]]


def test_each_crystal_has_one_place():
    plan = Plan.make(PUConfig(), ALL, POSITIVES)
    assert sorted((*plan.positives, *plan.heldout)) == POSITIVES
    assert len(plan.heldout) == 8
    assert sorted((*plan.positives, *plan.heldout, *plan.unlabelled)) == [c.material_id for c in ALL]
    assert plan.size == len(plan.positives)


@pytest.mark.parametrize("ratio", [0.5, 1.0, 2.0])
def test_a_bag(ratio):
    plan = Plan.make(PUConfig(ratio=ratio), ALL, POSITIVES)
    draw = plan.draw(3)
    assert len(draw.drawn) == len(set(draw.drawn)) == round(ratio * 32)
    assert set(draw.drawn) <= set(plan.unlabelled)
    assert sorted((*draw.train, *draw.val)) == sorted((*plan.positives, *draw.drawn))
    for names in (plan.positives, draw.drawn):  # of both classes the same share
        assert len(set(draw.val) & set(names)) == max(1, round(0.1 * len(names)))
    outside = plan.outside(draw)
    assert set(outside) == {*plan.unlabelled, *plan.heldout} - set(draw.drawn)
    assert not set(outside) & {*draw.train, *draw.val}


def test_draws_are_functions_of_seed_and_bag():
    """Not of the order of the crystals, of the bags, or of earlier calls."""
    plan = Plan.make(PUConfig(seed=5), ALL, POSITIVES)
    again = Plan.make(PUConfig(seed=5), ALL[::-1], POSITIVES[::-1])
    assert plan == again
    assert [plan.draw(bag) for bag in (4, 0, 2)] == [again.draw(bag) for bag in (4, 0, 2)]
    assert plan.draw(0).drawn != plan.draw(1).drawn
    assert plan.draw(0).val != plan.draw(1).val
    other = Plan.make(PUConfig(seed=6), ALL, POSITIVES)
    assert other.heldout != plan.heldout
    assert other.draw(0).drawn != plan.draw(0).drawn


def test_these_draws():
    """The first bag of a plan, once and for all: made by Plan.make(PUConfig(), ALL, POSITIVES).draw(0)."""
    draw = Plan.make(PUConfig(), ALL, POSITIVES).draw(0)
    assert draw.drawn[:6] == ("c041", "c043", "c045", "c046", "c047", "c049")
    assert draw.val == ("c002", "c004", "c026", "c074", "c075", "c112")


def test_draws_are_even():
    """Every unlabelled crystal is drawn by about as many bags: 32 of 80, four standard deviations of 300 bags."""
    plan = Plan.make(PUConfig(), ALL, POSITIVES)
    counts = dict.fromkeys(plan.unlabelled, 0)
    for bag in range(300):
        for name in plan.draw(bag).drawn:
            counts[name] += 1
    assert np.abs(np.array(list(counts.values())) / 300 - 0.4).max() < 4 * np.sqrt(0.4 * 0.6 / 300)


def test_a_plan_is_kept(tmp_path):
    plan = Plan.make(PUConfig(), ALL, POSITIVES, later=["c050"])
    plan.save(tmp_path)
    assert Plan.load(tmp_path) == plan
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(CheckpointError, match="no plan of bags that can be read"):
        Plan.load(tmp_path)


def test_the_same_crystal_is_never_held_out_and_trained_on():
    """Ten positives in twenty cells: both cells of one stay on one side, of the hold-out and of each validation."""
    twins = [crystal(f"twin-{n}-{cell}", {"Al": n + 1, "Cu": 50}) for n in range(10) for cell in (0, 1)]
    plan = Plan.make(PUConfig(val=0.3), [*twins, *ALL[40:]], [c.material_id for c in twins])
    pair = {c.material_id: c.material_id.rpartition("-")[0] for c in twins}
    assert not {pair[n] for n in plan.heldout} & {pair[n] for n in plan.positives}
    assert len(plan.heldout) == 4
    for bag in range(5):
        draw = plan.draw(bag)
        val, train = ({pair[n] for n in names if n in pair} for names in (draw.val, draw.train))
        assert val
        assert not val & train


def test_duplicates_are_told_and_set_aside():
    """The same crystal in another cell, a polymorph, and one of another formula."""
    same = crystal("same", {element: 2 * count for element, count in ALL[0].composition.items()}, 10.00001)
    polymorph = crystal("polymorph", ALL[1].composition, 14.0)
    given = [*ALL, same, polymorph]
    found = {entry.material_id: (entry.kind, entry.positive) for entry in find_duplicates(given, POSITIVES)}
    assert found == {"same": ("same_crystal", "c000"), "polymorph": ("same_formula", "c001")}
    kept = Plan.make(PUConfig(), given, POSITIVES)
    assert {"same", "polymorph"} <= set(kept.unlabelled)
    plan = Plan.make(PUConfig(duplicates="set_aside"), given, POSITIVES)
    assert plan.set_aside == ("same",)
    assert "polymorph" in plan.unlabelled
    for bag in range(5):
        draw = plan.draw(bag)
        assert "same" not in (*draw.drawn, *draw.train, *draw.val, *plan.outside(draw), *plan.scored)


def test_an_element_that_no_bag_sees():
    plan = Plan.make(PUConfig(element="Ni"), ALL, POSITIVES)
    having = {c.material_id for c in ALL if "Ni" in c.composition}
    assert set(plan.heldout) == having & set(POSITIVES)
    assert set(plan.unseen) == having - set(POSITIVES)
    for bag in range(5):
        draw = plan.draw(bag)
        assert not having & {*draw.train, *draw.val}
        assert having <= set(plan.outside(draw))


@pytest.mark.parametrize(
    ("pu", "positives", "message"),
    [
        ({}, 2, r"2 positives \(2 different crystals\) are too few: the hold-out takes 0.2 of them \(pu.holdout\)"),
        ({"holdout": 0.95}, 5, r"5 positives are too few: the hold-out of 0.95 \(pu.holdout\) leaves 1.*lower it"),
        ({}, 90, r"30 unlabelled crystals are too few: a bag draws 72 of them \(1 for each of 72 .*pu.ratio to 0.4 or"),
        (
            {"ratio": 3.0},
            40,
            r"80 unlabelled crystals are too few: a bag draws 96 of them .*set pu.ratio to 2.46 or less",
        ),
        ({"element": "Au"}, 40, r"40 positives .*are too few: the hold-out takes those with Au \(pu.element\)"),
    ],
)
def test_too_few(pu, positives, message):
    with pytest.raises(DataError, match=message):
        Plan.make(PUConfig(**pu), ALL, [c.material_id for c in ALL[:positives]])


def test_the_advised_ratio_is_enough():
    plan = Plan.make(PUConfig(ratio=2.46), ALL, POSITIVES)
    assert plan.size < len(plan.unlabelled)


def test_one_crystal_many_times_is_no_training_set():
    same = [crystal(f"same-{n}", {"Al": 1}) for n in range(10)]
    few = [crystal("other", {"Cu": 1}), crystal("third", {"Fe": 1}), *same]
    with pytest.raises(DataError, match=r"bag 0: its \d+ positives are too few, or too many of them the same crystal"):
        Plan.make(PUConfig(holdout=0.2), [*few, *ALL[40:]], [c.material_id for c in few]).draw(0)
