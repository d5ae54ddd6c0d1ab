"""Relations from two moduli: check rows, the formulas written again, pymatgen, and what must hold for any moduli."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymatgen.analysis.elasticity import ElasticTensor
from pymatgen.core import Lattice, Structure

from cgnn.errors import CgnnError
from cgnn.physics.chemistry import METALS, is_metal
from cgnn.physics.elastic import DALTON, debye_temperature, mean_velocity, poisson_ratio, youngs_modulus
from cgnn.physics.fracture import toughness_mo, toughness_niu, zeta
from cgnn.physics.hardness import chi, hardness_chen, hardness_mo, hardness_teter, hardness_tian, is_superhard
from cgnn.physics.relations import INPUTS, RELATIONS, flags
from cgnn.physics.thermal import expansion_factor, expansion_limit, gruneisen

ROWS = {  # K, G (GPa), V0 (Å³) -> E, nu, H of Mazhnik and Oganov, H of Chen, K_IC: issue 6, to all printed digits
    "diamond": ((443, 535, 5.67), ("1144.3", "0.0695", "101.62", "95.40", "6.402")),
    "c-BN": ((376, 382, 5.905), ("856.1", "0.1205", "69.15", "63.01", "4.799")),
    "SiC": ((222, 190, 10.35), ("443.5", "0.1671", "29.56", "32.89", "3.237")),
    "Al2O3": ((254, 163, 8.49), ("402.8", "0.2357", "18.53", "20.43", "3.172")),
    "Si": ((98, 66.5, 20.02), ("162.7", "0.2233", "7.64", "11.80", "0.902")),
}
moduli = st.floats(1.0, 1000.0)


@pytest.mark.parametrize("name", ROWS)
def test_check_rows_to_all_printed_digits(name: str) -> None:
    (K, G, V), printed = ROWS[name]
    found = youngs_modulus(K, G), poisson_ratio(K, G), hardness_mo(K, G), hardness_chen(K, G), toughness_mo(K, G, V)
    assert [f"{value:.{len(text.split('.')[1])}f}" for value, text in zip(found, printed, strict=True)] == list(printed)


@pytest.mark.parametrize(
    ("a", "mass", "K", "G", "theta"), [(3.567, 12.011, 443, 535, 2245), (5.431, 28.0855, 98, 66.5, 648)]
)
def test_debye_temperatures_of_diamond_and_silicon(a: float, mass: float, K: float, G: float, theta: int) -> None:
    volume = a**3 / 8
    density = mass * DALTON * 1e27 / volume
    assert round(float(debye_temperature(K, G, volume, density))) == theta


@given(K=moduli, G=moduli, V=st.floats(3.0, 60.0))
def test_formulas_written_again(K: float, G: float, V: float) -> None:
    k = G / K
    nu = (3 - 2 * k) / (6 + 2 * k)
    E = 2 * G * (1 + nu)
    assert float(hardness_tian(K, G)) == pytest.approx(0.92 * k**1.137 * G**0.708, rel=1e-12)
    assert float(hardness_chen(K, G)) == pytest.approx(max(0.0, 2 * (k * k * G) ** 0.585 - 3), rel=1e-9, abs=1e-12)
    assert float(hardness_teter(G)) == pytest.approx(0.151 * G, rel=1e-12)
    x = (1 + nu * (-8.5 + 19.5 * nu)) / (1 + nu * (-7.5 + nu * (12.2 + 19.6 * nu)))
    z = (1 + nu * (-13.7 + 48.6 * nu)) / (1 + nu * (-15.2 + nu * (70.2 - 81.5 * nu)))
    assert float(hardness_mo(K, G)) == pytest.approx(0.096 * x * E, rel=1e-9)
    metres = (V * 1e-30) ** (1 / 6)  # in SI: Pa m^½
    assert float(toughness_mo(K, G, V)) == pytest.approx(
        metres * (z * E * 1e9) ** 1.5 / math.sqrt(8840e9) / 1e6, rel=1e-9
    )
    assert float(toughness_niu(K, G, V)) == pytest.approx(metres * G * 1e9 * math.sqrt(K / G) / 1e6, rel=1e-12)
    assert float(gruneisen(K, G)) == pytest.approx(1.5 * (1 + nu) / (2 - 3 * nu), rel=1e-12)


def diamond_tensor(K: float, G: float) -> tuple[ElasticTensor, Structure]:
    """Return the isotropic tensor of two moduli and a crystal for pymatgen's formulas."""
    C = np.diag([2 * G] * 3 + [G] * 3)
    C[:3, :3] += K - 2 * G / 3
    crystal = Structure.from_spacegroup("Fd-3m", Lattice.cubic(3.567), ["C"], [[0, 0, 0]]).get_primitive_structure()
    return ElasticTensor.from_voigt(C), crystal


@pytest.mark.parametrize(("K", "G"), [(443.0, 535.0), (98.0, 66.5), (180.0, 40.0)])
def test_sound_and_heat_as_pymatgen_has_them(K: float, G: float) -> None:
    tensor, crystal = diamond_tensor(K, G)
    V, density = crystal.volume / len(crystal), float(crystal.density)
    given = {"bulk": K, "shear": G, "volume_per_atom": V, "density": density, "atoms_per_cell": 2}
    theirs = {
        "youngs_modulus": tensor.y_mod / 1e9,  # in Pa there
        "poisson_ratio": tensor.homogeneous_poisson,
        "longitudinal_velocity": tensor.long_v(crystal) / 1e3,
        "transverse_velocity": tensor.trans_v(crystal) / 1e3,
        "debye_temperature": tensor.debye_temperature(crystal),
        "conductivity_clarke": tensor.clarke_thermalcond(crystal),
        "conductivity_cahill": tensor.cahill_thermalcond(crystal),
    }
    for name, value in theirs.items():
        relation = RELATIONS[name]
        ours = float(relation.function(*(given[need] for need in relation.needs)))
        assert ours == pytest.approx(float(value), rel=1e-3), name


def test_slack_gives_the_conductivity_of_diamond() -> None:
    volume, density = 3.567**3 / 8, 12.011 * DALTON * 1e27 / (3.567**3 / 8)
    relation = RELATIONS["conductivity_slack"]
    ours = float(relation.function(443.0, 535.0, volume, density, 2))
    gamma = 1.5 * 1.0694742 / (2 - 3 * 0.0694742)
    A = 2.43e-6 / (1 - 0.514 / gamma + 0.228 / gamma**2)
    assert ours == pytest.approx(
        A * 12.011 * 2245.18**3 * volume ** (1 / 3) / (gamma**2 * 2 ** (2 / 3) * 300), rel=1e-4
    )
    assert 1800 < ours < 2600  # 2200 W/(m K) measured: Slack's model is good to about 20 % here


def test_the_limit_of_expansion() -> None:
    nu = np.linspace(-0.99, 0.499, 200_001)
    factor = expansion_factor(nu)
    assert float(nu[factor.argmax()]) == pytest.approx(0.139, abs=1e-3)
    assert float(factor.max()) == pytest.approx(2 * (11 - 2 * math.sqrt(10)) / 9, rel=1e-9)
    K, G, V = 443.0, 535.0, 5.67
    E, ratio = float(youngs_modulus(K, G)), float(poisson_ratio(K, G))
    by_gruneisen = 4 / 3 * float(gruneisen(K, G)) * (1 - 2 * ratio) * 3 * 1.380649e-23 / (V * 1e-30 * E * 1e9)
    assert float(expansion_limit(K, G, V)) == pytest.approx(by_gruneisen, rel=1e-12)
    assert by_gruneisen > 4.4e-6  # of diamond at 1000 K, measured


def test_where_the_functions_of_poissons_ratio_are_defined() -> None:
    for function in (chi, zeta, expansion_factor):
        assert np.isnan(function([-1.0, 0.5, -1.2, 0.6, np.nan])).all()
        assert np.isfinite(function(np.linspace(-0.999, 0.499, 5001))).all()
        assert (function(np.linspace(-0.999, 0.499, 5001)) > 0).all()
    assert np.abs(np.roots([19.6, 12.2, -7.5, 1]).real + 1.0383).min() < 1e-4  # chi's pole, said in its description
    assert np.abs(np.roots([-81.5, 70.2, -15.2, 1]).real - 0.5734).min() < 1e-4  # zeta's


def test_zeta_is_as_steep_as_said() -> None:
    nu = np.linspace(0, 0.4, 400_001)
    slope = np.gradient(np.log(zeta(nu)), nu)
    assert float(slope.max()) == pytest.approx(11.19, abs=0.01)
    assert float(nu[slope.argmax()]) == pytest.approx(0.14, abs=1e-3)


@given(K=moduli, G=moduli, scale=st.floats(0.1, 10.0))
def test_scaling_and_ranges(K: float, G: float, scale: float) -> None:
    assert -1 < float(poisson_ratio(K, G)) < 0.5
    assert float(hardness_mo(scale * K, scale * G)) == pytest.approx(scale * float(hardness_mo(K, G)), rel=1e-9)
    assert float(toughness_mo(scale * K, scale * G, 10.0)) == pytest.approx(
        scale**1.5 * float(toughness_mo(K, G, 10.0)), rel=1e-9
    )
    assert float(mean_velocity(K, G, 5.0)) > float(np.sqrt(G / 5.0))  # longitudinal sound is faster
    assert float(hardness_chen(K, G)) >= 0


def test_carbides_without_a_gap_are_no_metals() -> None:
    assert is_metal(["W", "Re"])
    assert is_metal(["Cu"], 0.0)
    assert is_metal(["Ni", "Al"], math.nan)
    assert not is_metal(["Mg", "Sn"], 0.3)
    assert not is_metal(["W", "C"], 0.0)
    assert not is_metal([])
    assert not {"B", "C", "N", "O", "Si", "Ge", "As", "Sb", "Te", "H"} & METALS
    # moduli of WC and TiN in the Materials Project (mp-1894, mp-492); Vickers hardness about 30 and 23 GPa, as in the
    # table of Chen et al. (2011)
    assert float(hardness_mo(380.2, 263.2)) == pytest.approx(30, rel=0.15)
    assert float(hardness_mo(278.5, 191.6)) == pytest.approx(23, rel=0.15)


def test_metals_and_failed_calculations_do_not_rank_as_superhard() -> None:
    metal = [False, True, False, False]
    assert is_superhard([50.0, 50.0, 39.9, math.nan], 0.1, metal).tolist() == [True, False, False, False]
    # SiB (mp-978495), a failed calculation: by the formula it is almost as hard as diamond
    assert float(hardness_mo(125.9, 467.0)) > 80
    assert not is_superhard(hardness_mo(125.9, 467.0), poisson_ratio(125.9, 467.0))


def test_flags_say_what_is_not_valid() -> None:
    none, metal, soft, both = flags([0.2, 0.2, 0.45, -0.1], [False, True, False, True])
    assert none == ""
    assert metal == "metal or alloy: not valid: hardness_mo, hardness_teter, toughness_mo, toughness_niu"
    assert soft == "Poisson's ratio 0.45 outside 0 to 0.4: not valid: hardness_mo, toughness_mo"
    assert "metal" in both
    assert "-0.10 outside" in both


@pytest.mark.parametrize("name", RELATIONS)
def test_contract_of_every_relation(name: str) -> None:
    relation = RELATIONS[name]
    assert set(relation.needs) <= set(INPUTS)
    assert relation.formula
    assert relation.source
    assert relation.validity
    single = {"bulk": 222.0, "shear": 190.0, "volume_per_atom": 10.35, "density": 3.2, "atoms_per_cell": 2.0}
    numbers = [single[need] for need in relation.needs]
    one = relation.function(*numbers)
    assert one.shape == ()
    assert one.dtype == np.float64
    assert np.isfinite(one)
    many = relation.function(*(np.full((3, 1), number) for number in numbers[:1]), *numbers[1:])
    assert many.shape == (3, 1)
    assert np.array_equal(many, np.full((3, 1), one))
    assert np.isnan(relation.function(math.nan, *numbers[1:]))
    for place, need in enumerate(relation.needs):
        for wrong in (0.0, -3.0, math.inf):
            changed = [*numbers[:place], np.array([numbers[place], wrong]), *numbers[place + 1 :]]
            words = {"bulk": "bulk modulus", "shear": "shear modulus"}.get(need, need.replace("_", " "))
            with pytest.raises(CgnnError, match=rf"^{words} at 1: expected a finite number above 0, got {wrong:g}$"):
                relation.function(*changed)
