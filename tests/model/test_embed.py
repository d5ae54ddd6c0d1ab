"""Element tables, Gaussians and the envelope."""

import math

import numpy as np
import pytest
import torch
from pymatgen.core import Element

from cgnn.config import ModelConfig
from cgnn.errors import ConfigError
from cgnn.model.embed import ELEMENTS, ElementEmbedding, GaussianBasis, cgcnn, envelope, one_hot, properties

GROUP, PERIOD, ELECTRONEGATIVITY, RADIUS, VALENCE, IONIZATION, AFFINITY, BLOCK, VOLUME = BLOCKS = [
    slice(start, start + size)
    for start, size in zip(
        np.cumsum([0, 18, 8, 10, 10, 12, 10, 10, 4]), [18, 8, 10, 10, 12, 10, 10, 4, 10], strict=True
    )
]


# Element tables


@pytest.mark.parametrize("name", ELEMENTS)
def test_tables_have_a_row_for_each_atomic_number(name):
    table = ELEMENTS[name]()
    assert table.shape[0] == 119
    assert np.isfinite(table).all()


def test_one_hot_is_the_unit_matrix():
    assert np.array_equal(one_hot(), np.eye(119))


def test_cgcnn_has_the_shape_of_the_original():
    assert cgcnn().shape == (119, 92)
    assert BLOCKS[-1].stop == 92


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_every_block_of_digits_has_one_digit_or_is_unknown(block):
    table = cgcnn()
    assert set(np.unique(table)) == {0.0, 1.0}
    assert set(table[1:104, block].sum(axis=1)) <= {0.0, 1.0}
    assert not table[0].any()
    assert not table[104:].any()


@pytest.mark.parametrize("block", [GROUP, PERIOD, BLOCK, VALENCE], ids=["group", "period", "block", "valence"])
def test_what_is_known_of_every_element_has_its_digit(block):
    assert (cgcnn()[1:104, block].sum(axis=1) == 1).all()


def digit(symbol: str, block: slice) -> int | None:
    """Return the number, from 1, of the digit that is set."""
    digits = np.flatnonzero(cgcnn()[Element(symbol).Z, block])
    return int(digits[0]) + 1 if len(digits) else None


def bin_of(value: float, low: float, high: float, count: int = 10) -> int:
    edges = np.linspace(low, high, count + 1)
    return int(np.clip(np.searchsorted(edges, value, side="right"), 1, count))


@pytest.mark.parametrize(
    ("symbol", "group", "period"),
    [("H", 1, 1), ("He", 18, 1), ("Fe", 8, 4), ("Si", 14, 3), ("Cs", 1, 6), ("O", 16, 2), ("La", 3, 6), ("Hf", 4, 6)],
)
def test_group_and_period(symbol, group, period):
    assert (digit(symbol, GROUP), digit(symbol, PERIOD)) == (group, period)


@pytest.mark.parametrize(
    ("symbol", "valence"),
    [("H", 1), ("He", 2), ("Na", 1), ("Si", 4), ("O", 6), ("Ne", 8), ("Fe", 8), ("Ti", 4), ("Cl", 7), ("K", 1)],
)
def test_valence_electrons(symbol, valence):
    assert digit(symbol, VALENCE) == valence


@pytest.mark.parametrize(("symbol", "block"), [("Mg", 1), ("Al", 2), ("Zn", 3), ("U", 4), ("H", 1)])
def test_blocks_are_s_p_d_f(symbol, block):
    assert digit(symbol, BLOCK) == block


# Textbook values: Pauling electronegativity, covalent radius in pm (Cordero; high-spin iron), first ionisation energy
# in eV, electron affinity in eV, molar volume in cm3/mol.
@pytest.mark.parametrize(
    ("symbol", "electronegativity", "radius", "ionization", "affinity", "volume"),
    [
        ("F", 3.98, 57, 17.42, 3.40, 11.20),
        ("Na", 0.93, 166, 5.14, 0.55, 23.78),
        ("S", 2.58, 105, 10.36, 2.08, 15.53),
        ("Fe", 1.83, 152, 7.90, 0.15, 7.09),
        ("Au", 2.54, 136, 9.23, 2.31, 10.21),
    ],
)
def test_binned_properties(symbol, electronegativity, radius, ionization, affinity, volume):
    assert digit(symbol, ELECTRONEGATIVITY) == bin_of(electronegativity, 0.5, 4.0)
    assert digit(symbol, RADIUS) == bin_of(radius, 25, 250)
    assert digit(symbol, IONIZATION) == bin_of(math.log(ionization), 1.3, 3.3)
    assert digit(symbol, AFFINITY) == bin_of(affinity, -3, 3.7)
    assert digit(symbol, VOLUME) == bin_of(math.log(volume), 1.5, 4.3)


def test_an_unknown_electronegativity_has_no_digit():
    assert digit("Ar", ELECTRONEGATIVITY) is None


def test_properties_are_standardised_over_the_known():
    table = properties()
    continuous, gaps = table[1:104, :27], table[1:104, 27:]
    assert not table[0].any()
    assert not table[104:].any()
    assert set(np.unique(gaps)) == {0.0, 1.0}
    for column in continuous.T:
        # Unknown ones are zero, and so are known ones at the mean (in the columns of row and Mendeleev number).
        assert column.sum() == pytest.approx(0, abs=1e-9)
        known = (column**2).sum()
        assert known == pytest.approx(np.count_nonzero(column), abs=1e-6) or known == pytest.approx(103, abs=1e-6)


def test_properties_order_elements_as_nature_does():
    electronegativity, mass = properties()[:, 0], properties()[:, 1]
    z = {symbol: Element(symbol).Z for symbol in ("Cs", "Si", "F", "H", "U")}
    assert electronegativity[z["Cs"]] < electronegativity[z["Si"]] < electronegativity[z["F"]]
    assert mass[z["H"]] == mass[1:104].min()
    # The logarithm of the mass is taken.
    scale = (mass[z["U"]] - mass[z["H"]]) / math.log10(238.029 / 1.008)
    assert (mass[z["F"]] - mass[z["H"]]) / math.log10(18.998 / 1.008) == pytest.approx(scale, rel=1e-4)


def test_elements_differ_in_their_properties():
    assert len(np.unique(properties()[1:104], axis=0)) == 103


def test_gaps_stand_where_a_property_is_unknown():
    gaps = properties()[:, 27:]
    assert gaps[Element("Ar").Z].any()
    assert not gaps[Element("Fe").Z].any()


def test_the_embedding_is_the_sum_of_its_tables():
    both = ElementEmbedding(["one_hot", "properties", "cgcnn"], 6).double()
    z = torch.tensor([1, 26, 26, 118, 14])
    with torch.no_grad():
        expected = both.nets["one_hot"].weight.T[z] + both.nets["one_hot"].bias
        expected = expected + both.nets["properties"](torch.from_numpy(properties())[z].float().double())
        expected = expected + torch.from_numpy(cgcnn())[z] @ both.nets["cgcnn"].weight.T + both.nets["cgcnn"].bias
        torch.testing.assert_close(both(z), expected, rtol=1e-9, atol=1e-9)


def test_the_default_takes_one_hot_and_properties():
    assert ModelConfig().elements == ("one_hot", "properties")


def test_tables_travel_with_the_weights():
    state = ElementEmbedding(["properties", "cgcnn"], 4).state_dict()
    assert {"table_properties", "table_cgcnn"} <= set(state)
    np.testing.assert_allclose(state["table_cgcnn"], cgcnn())


def test_an_unknown_table_is_refused():
    with pytest.raises(ConfigError, match="did you mean 'one_hot'"):
        ElementEmbedding(["onehot"], 4)


# Gaussians


def test_gaussians_against_their_formula(rng):
    basis = GaussianBasis(41, 0.0, 8.0).double()
    assert basis.width == pytest.approx(0.2)
    distance = rng.uniform(0.5, 9, size=100)
    expected = np.exp(-((distance[:, None] - np.linspace(0, 8, 41)) ** 2) / 0.2**2)
    np.testing.assert_allclose(basis(torch.from_numpy(distance)).numpy(), expected, rtol=0, atol=1e-6)
    far = expected < math.exp(-30.001)
    assert far.any()
    assert not basis(torch.from_numpy(distance)).numpy()[far].any()


def test_gaussians_of_a_given_width():
    basis = GaussianBasis(3, 1.0, 3.0, width=0.5).double()
    expected = np.exp(-((2.2 - np.array([1.0, 2.0, 3.0])) ** 2) / 0.25)
    np.testing.assert_allclose(basis(torch.tensor([2.2], dtype=torch.float64))[0].numpy(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("width", [None, 0.05, 0.4])
def test_no_denormal_numbers_in_values_or_gradients(width):
    tiny = torch.finfo(torch.float32).tiny
    distance = torch.linspace(0, 40, 40_001, requires_grad=True)
    basis = GaussianBasis(41, 0.0, 8.0, width)
    values = basis(distance)
    assert not ((values != 0) & (values.abs() < tiny)).any()
    assert (values >= 0).all()
    # The gradient of each Gaussian alone, so that large ones do not hide small ones.
    slopes = torch.autograd.functional.jvp(basis, distance.detach(), torch.ones_like(distance))[1]
    assert not ((slopes != 0) & (slopes.abs() < tiny)).any()
    assert torch.isfinite(slopes).all()
    values.sum().backward()
    assert not ((distance.grad != 0) & (distance.grad.abs() < tiny)).any()


def test_gaussians_reach_zero_without_a_step():
    basis = GaussianBasis(2, 0.0, 8.0, width=1.0).double()
    edge = math.sqrt(30)  # where the first Gaussian is exp(-30)
    close = basis(torch.tensor([edge - 1e-6, edge, edge + 1e-6], dtype=torch.float64))[:, 0]
    assert close[0] > close[1] >= close[2] == 0
    assert close[0] < 2e-18 + 2 * edge * 1e-6 * math.exp(-30) * 1.01


# The envelope


def test_envelope_against_its_formula(rng):
    distance = torch.from_numpy(rng.uniform(0, 6, 50))
    reach = torch.from_numpy(rng.uniform(2, 6, 50))
    expected = np.where(distance < reach, (1 - (distance / reach) ** 4) ** 2, 0)
    np.testing.assert_allclose(envelope(distance, reach), expected, rtol=0, atol=1e-14)


def test_envelope_at_its_ends():
    distance = torch.tensor([0.0, 4.0, 4.0 - 1e-9, 5.0], dtype=torch.float64, requires_grad=True)
    weight = envelope(distance, torch.full((4,), 4.0, dtype=torch.float64))
    assert weight[0] == 1
    assert weight[1] == weight[3] == 0
    (slope,) = torch.autograd.grad(weight.sum(), distance)
    assert slope[0] == slope[1] == slope[3] == 0
    assert abs(slope[2]) < 1e-7
    # Zero slope, so that it vanishes with the square of what is left: (4 eps / r)^2.
    eps = 1e-4
    near = envelope(torch.tensor([4.0 - eps], dtype=torch.float64), torch.tensor([4.0], dtype=torch.float64))
    assert float(near) == pytest.approx((4 * eps / 4.0) ** 2, rel=1e-3)


def test_envelope_falls_all_the_way():
    weight = envelope(torch.linspace(0, 3, 1000).double(), torch.full((1000,), 3.0).double())
    assert (weight.diff() <= 0).all()


def test_an_infinite_reach_gives_weight_one():
    distance = torch.tensor([0.1, 5.0, 30.0], requires_grad=True)
    weight = envelope(distance, torch.full((3,), math.inf))
    assert weight.tolist() == [1, 1, 1]
    weight.sum().backward()
    assert distance.grad.tolist() == [0, 0, 0]
