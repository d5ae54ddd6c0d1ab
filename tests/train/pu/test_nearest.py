"""The baseline of nearest compositions."""

import numpy as np

from cgnn.data.summary import CrystalSummary
from cgnn.train.pu.nearest import nearest_compositions
from cgnn.train.pu.plan import Plan


def crystal(name, **composition):
    return CrystalSummary(name, composition, 10.0, (2.0,))


CRYSTALS = {
    c.material_id: c
    for c in (
        *(crystal(f"p{n}", Na=1, Cl=1) for n in range(3)),
        crystal("p3", Na=2, Cl=1),
        *(crystal(f"u{n}", Na=2, Cl=2) for n in range(2)),
        crystal("u2", Na=3, Cl=1),
        *(crystal(f"u{n}", Fe=1, Ni=n) for n in (3, 4, 5)),
        crystal("h0", Na=4, Cl=4),
        crystal("h1", Fe=1, Ni=4),
    )
}


def plan(**lists):
    names = {"positives": "p", "heldout": "h", "unlabelled": "u"}
    made = {kind: tuple(name for name in CRYSTALS if name[0] == letter) for kind, letter in names.items()}
    return Plan(unseen=(), set_aside=(), later=(), size=2, val=0.1, seed=0, **(made | lists))


def test_shares_are_those_that_can_be_counted():
    heldout, scored = nearest_compositions(plan(), CRYSTALS, neighbours=4)
    # h0: four of the five crystals NaCl (three are positive), by lot; h1: the three of Fe-Ni and one of Na-Cl
    assert heldout[0] == 4 * 3 / 5 / 4
    assert 0 <= heldout[1] <= 0.25
    # u0 is not its own neighbour: three positives and u1
    np.testing.assert_allclose(scored[:2], 0.75)
    # u2, Na3Cl: next is p3, Na2Cl, then three of the five of NaCl
    np.testing.assert_allclose(scored[2], (1 + 3 * 3 / 5) / 4)


def test_no_crystal_is_told_its_own_label():
    """Alone with its composition and far from all others, a crystal has the score of strangers."""
    alone = CRYSTALS | {"u9": crystal("u9", Xe=1), "h9": crystal("h9", Kr=1)}
    names = plan(unlabelled=("u0", "u9"), heldout=("h9",))
    heldout, scored = nearest_compositions(names, alone, neighbours=4)
    assert scored[1] > 0
    assert heldout[0] > 0


def test_fewer_crystals_than_neighbours():
    heldout, scored = nearest_compositions(plan(), CRYSTALS, neighbours=100)
    np.testing.assert_allclose(heldout, 4 / 10)
    np.testing.assert_allclose(scored, 4 / 9)


def test_random_compositions_by_hand(rng):
    counts = rng.integers(1, 1000, (60, 5))  # no two distances are equal, so there is one answer
    crystals = {
        f"c{n:02d}": crystal(f"c{n:02d}", **dict(zip("BCNOF", row, strict=True))) for n, row in enumerate(counts)
    }
    names = sorted(crystals)
    drawn = plan(positives=tuple(names[:20]), heldout=tuple(names[20:30]), unlabelled=tuple(names[30:]))
    shares = counts / counts.sum(axis=1, keepdims=True)
    known = [*range(20), *range(30, 60)]

    def expected(asked):
        others = [number for number in known if number != asked]
        near = np.argsort(np.linalg.norm(shares[others] - shares[asked], axis=1))[:5]
        return np.mean([others[place] < 20 for place in near])

    heldout, scored = nearest_compositions(drawn, crystals, neighbours=5)
    np.testing.assert_allclose(heldout, [expected(number) for number in range(20, 30)])
    np.testing.assert_allclose(scored, [expected(number) for number in range(30, 60)])
