import math

import numpy as np
import pytest
import torch

from cgnn.errors import DataError
from cgnn.targets import RESERVED, TRANSFORMS, Target

NUMBER = Target(name="energy", unit="eV/atom")
MODULUS = Target(name="bulk_modulus", column="bulk_modulus.vrh", unit="GPa", transform="log10")
METAL = Target(name="is_metal", task="binary")
SYSTEM = Target(name="system", task="multiclass", classes=("cubic", "1", "True"))


@pytest.mark.parametrize("target", [NUMBER, MODULUS, METAL, SYSTEM])
@pytest.mark.parametrize("missing", [None, ""])
def test_missing_labels(target, missing):
    assert math.isnan(target.encode(missing))


@pytest.mark.parametrize(
    ("target", "label", "value"),
    [
        (NUMBER, -3, -3.0),
        (NUMBER, 0.0, 0.0),
        (NUMBER, 1e29, 1e29),
        (NUMBER, np.float64(2.5), 2.5),
        (MODULUS, 100, 100.0),
        (MODULUS, 1e-300, 1e-300),
        (METAL, True, 1.0),
        (METAL, False, 0.0),
        (METAL, 1, 1.0),
        (METAL, 0.0, 0.0),
        (METAL, "TRUE", 1.0),
        (METAL, "false", 0.0),
        (SYSTEM, "cubic", 0.0),
        (SYSTEM, 1, 1.0),
        (SYSTEM, True, 2.0),
    ],
)
def test_labels(target, label, value):
    found = target.encode(label)
    assert found == value
    assert type(found) is float


BAD_NUMBERS = [
    (float("nan"), "not a finite number"),
    (float("inf"), "not a finite number"),
    (-float("inf"), "not a finite number"),
    (1e30, "plausible size"),
    (10**400, "more than 40 digits is not a finite number"),
    (-(10**5000), "more than 40 digits is not a finite number"),
    ("12.5", "'12.5' is not a number"),
    ("high", "'high' is not a number"),
    (True, "True is not a number"),
    ([1.0], r"\[1\.0\] is not a number"),
    ({"vrh": 1.0}, "is not a number"),
    (1 + 2j, "is not a number"),
]


@pytest.mark.parametrize("target", [NUMBER, MODULUS])
@pytest.mark.parametrize(("label", "message"), BAD_NUMBERS, ids=[message for _, message in BAD_NUMBERS])
def test_bad_numbers(target, label, message):
    with pytest.raises(DataError, match=message):
        target.encode(label)


@pytest.mark.parametrize("label", [0, -0.0, -5, -1e-300])
def test_no_logarithm(label):
    with pytest.raises(DataError, match=f"{label!r} can't be learned as log10"):
        MODULUS.encode(label)


@pytest.mark.parametrize("label", [2, -1, 0.5, float("nan"), "yes", "1", [1], 10**5000], ids=lambda v: type(v).__name__)
def test_bad_binary(label):
    with pytest.raises(DataError, match="is neither 0/1 nor true/false"):
        METAL.encode(label)


@pytest.mark.parametrize("label", ["Cubic", 0, float("nan"), ["cubic"], "x" * 10_000])
def test_bad_class(label):
    with pytest.raises(DataError, match="is none of the classes cubic, 1, True") as caught:
        SYSTEM.encode(label)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_invert(name, rng):
    transform = TRANSFORMS[name]
    values = rng.uniform(1e-3, 1e3, 100)
    learned = transform.forward(values)
    np.testing.assert_allclose(transform.inverse(learned), values, rtol=1e-12)
    np.testing.assert_allclose(transform.inverse(torch.from_numpy(learned)).numpy(), values, rtol=1e-12)
    assert np.all(np.diff(transform.forward(np.sort(values))) > 0)


def test_what_is_accepted_can_be_transformed():
    for name, transform in TRANSFORMS.items():
        target = Target(name="y", transform=name)
        for label in (-1.0, -1e-320, -0.0, 0.0, 1e-320, 1.0):
            try:
                encoded = target.encode(label)
            except DataError:
                assert label <= 0
                continue
            assert np.isfinite(transform.forward(np.array(encoded)))


@pytest.mark.parametrize("of", [np.array, torch.tensor])
def test_no_prediction_below_zero(of):
    gap = TRANSFORMS["nonnegative"]
    learned = of([-2.0, -0.125, 0.0, 0.125, 3.5])
    assert gap.inverse(learned).tolist() == [0.0, 0.0, 0.0, 0.125, 3.5]
    assert gap.forward(learned) is learned


@pytest.mark.parametrize("label", [-1.0, -1e-320])
def test_no_label_below_zero(label):
    with pytest.raises(DataError, match="can't be learned as nonnegative"):
        Target(name="gap", transform="nonnegative").encode(label)


def test_log10_by_hand():
    np.testing.assert_allclose(MODULUS.to_learned([1.0, 10.0, 1000.0]), [0.0, 1.0, 3.0])
    assert np.isnan(MODULUS.to_learned([np.nan])).all()


def test_names():
    assert MODULUS.source == "bulk_modulus.vrh"
    assert MODULUS.field == "y_bulk_modulus"
    assert NUMBER.source == "energy"


@pytest.mark.parametrize("name", ["", "1st", "a-b", "a.b", "a b", "ä", "../x", "=x"])
def test_bad_names(name):
    with pytest.raises(ValueError, match="name"):
        Target(name=name)


@pytest.mark.parametrize("name", RESERVED)
def test_reserved_names(name):
    with pytest.raises(ValueError, match="is taken by a column"):
        Target(name=name)
