"""The table of all derived properties: function, unit, what it needs, formula, source and validity."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from cgnn.physics import elastic, fracture, hardness, thermal
from cgnn.physics.elastic import Array

INPUTS = {
    "bulk": "GPa",
    "shear": "GPa",
    "volume_per_atom": "Å³",
    "density": "g/cm³",
    "atoms_per_cell": "",
}
"""What relations are computed from, with its unit; ``atoms_per_cell`` are those of the primitive cell."""

_ANY = (-1.0, 0.5)
_COVALENT = "covalent and ionic crystals, 0 <= nu <= 0.4; not metals, intermetallics or alloys"


@dataclass(frozen=True)
class Relation:
    """One derived property.

    Args:
        function: Takes what ``needs`` names, by position, and works elementwise.
        unit: Of the result.
        needs: Names out of `INPUTS`.
        formula: For people.
        source: Where it was published.
        validity: What it was fitted on and is valid for.
        doi: Of the source, ``""`` for textbooks.
        poisson: Range of Poisson's ratio where it holds.
        for_metals: Whether it holds for metals and alloys.
    """

    function: Callable[..., Array]
    unit: str
    needs: tuple[str, ...]
    formula: str
    source: str
    validity: str
    doi: str = ""
    poisson: tuple[float, float] = _ANY
    for_metals: bool = True


_MODULI = ("bulk", "shear")
_HEAVY = (*_MODULI, "density")
_CELL = (*_MODULI, "volume_per_atom")
_SOLID = (*_CELL, "density")
_ELASTICITY = "Landau & Lifshitz, Theory of Elasticity (1986)"
_ISOTROPIC = "isotropic solids and polycrystals"
_MO = (
    "Mazhnik & Oganov, J. Appl. Phys. 126, 125109 (2019)",
    _COVALENT,
    "10.1063/1.5113622",
    hardness.POISSON_RANGE,
    False,
)
_NIU_VALIDITY = "covalent and ionic crystals; metals and intermetallics need an enhancement factor"
_ANDERSON = "Anderson, J. Phys. Chem. Solids 24, 909 (1963)"
_ANDERSON_DOI = "10.1016/0022-3697(63)90067-2"

RELATIONS: dict[str, Relation] = {
    "youngs_modulus": Relation(
        elastic.youngs_modulus, "GPa", _MODULI, "E = 9 K G / (3 K + G)", _ELASTICITY, _ISOTROPIC
    ),
    "poisson_ratio": Relation(
        elastic.poisson_ratio, "", _MODULI, "nu = (3 K - 2 G) / (2 (3 K + G))", _ELASTICITY, _ISOTROPIC
    ),
    "pugh_ratio": Relation(
        elastic.pugh_ratio,
        "",
        _MODULI,
        "K / G",
        "Pugh, Phil. Mag. 45, 823 (1954)",
        "metals above about 1.75 tend to be ductile",
        "10.1080/14786440808520496",
    ),
    "hardness_mo": Relation(hardness.hardness_mo, "GPa", _MODULI, "H = 0.096 chi(nu) E", *_MO),
    "hardness_chen": Relation(
        hardness.hardness_chen,
        "GPa",
        _MODULI,
        "H = max(0, 2 (k^2 G)^0.585 - 3), k = G / K",
        "Chen et al., Intermetallics 19, 1275 (2011)",
        "polycrystals and metallic glasses; poor below 5 GPa",
        "10.1016/j.intermet.2011.03.026",
    ),
    "hardness_tian": Relation(
        hardness.hardness_tian,
        "GPa",
        _MODULI,
        "H = 0.92 k^1.137 G^0.708, k = G / K",
        "Tian, Xu & Zhao, Int. J. Refract. Met. Hard Mater. 33, 93 (2012)",
        "as hardness_chen, never below zero",
        "10.1016/j.ijrmhm.2012.02.021",
    ),
    "hardness_teter": Relation(
        hardness.hardness_teter,
        "GPa",
        ("shear",),
        "H = 0.151 G",
        "Teter, MRS Bull. 23(1), 22 (1998)",
        "hard, brittle materials; not metals",
        "10.1557/S0883769400031420",
        for_metals=False,
    ),
    "toughness_mo": Relation(
        fracture.toughness_mo, "MPa·m^½", _CELL, "K_IC = 8840^(-1/2) V0^(1/6) (zeta(nu) E)^(3/2)", *_MO
    ),
    "toughness_niu": Relation(
        fracture.toughness_niu,
        "MPa·m^½",
        _CELL,
        "K_IC = V0^(1/6) G (K/G)^(1/2)",
        "Niu, Niu & Oganov, J. Appl. Phys. 125, 065105 (2019)",
        _NIU_VALIDITY,
        "10.1063/1.5066311",
        for_metals=False,
    ),
    "longitudinal_velocity": Relation(
        elastic.longitudinal_velocity, "km/s", _HEAVY, "v_l = ((K + 4 G / 3) / rho)^(1/2)", _ELASTICITY, _ISOTROPIC
    ),
    "transverse_velocity": Relation(
        elastic.transverse_velocity, "km/s", ("shear", "density"), "v_t = (G / rho)^(1/2)", _ELASTICITY, _ISOTROPIC
    ),
    "mean_velocity": Relation(
        elastic.mean_velocity,
        "km/s",
        _HEAVY,
        "v_m = ((v_l^-3 + 2 v_t^-3) / 3)^(-1/3)",
        _ANDERSON,
        _ISOTROPIC,
        _ANDERSON_DOI,
    ),
    "debye_temperature": Relation(
        elastic.debye_temperature,
        "K",
        (*_CELL, "density"),
        "theta = h / k_B (3 / (4 pi V0))^(1/3) v_m",
        _ANDERSON,
        "low temperatures; sound that is nearly isotropic",
        _ANDERSON_DOI,
    ),
    "gruneisen": Relation(
        thermal.gruneisen,
        "",
        _MODULI,
        "gamma = 3/2 (1 + nu) / (2 - 3 nu)",
        "Belomestnykh, Tech. Phys. Lett. 30, 91 (2004)",
        "polycrystals, within about 15 %",
        "10.1134/1.1666949",
    ),
    "conductivity_clarke": Relation(
        thermal.conductivity_clarke,
        "W/(m K)",
        _SOLID,
        "0.87 k_B V0^(-2/3) (E / rho)^(1/2)",
        "Clarke, Surf. Coat. Technol. 163, 67 (2003)",
        "least conductivity of insulators, well above theta",
        "10.1016/S0257-8972(02)00593-5",
    ),
    "conductivity_cahill": Relation(
        thermal.conductivity_cahill,
        "W/(m K)",
        _SOLID,
        "(pi/6)^(1/3) / 2 k_B V0^(-2/3) (v_l + 2 v_t)",
        "Cahill, Watson & Pohl, Phys. Rev. B 46, 6131 (1992)",
        "least conductivity of disordered solids, above theta",
        "10.1103/PhysRevB.46.6131",
    ),
    "conductivity_slack": Relation(
        thermal.conductivity_slack,
        "W/(m K)",
        (*_SOLID, "atoms_per_cell"),
        "A M theta^3 V0^(1/3) / (gamma^2 n^(2/3) T), T = 300 K",
        "Slack, J. Phys. Chem. Solids 34, 321 (1973)",
        "heat carried by acoustic phonons, T above theta / 3",
        "10.1016/0022-3697(73)90092-9",
    ),
    "expansion_limit": Relation(
        thermal.expansion_limit,
        "1/K",
        _CELL,
        "2 (1 + nu)(1 - 2 nu) / (2 - 3 nu) 3 k_B / (V0 E)",
        "issue 6 of the project",
        "upper limit; nearly harmonic lattices",
    ),
}
"""Property -> how it is derived."""


def flags(poisson: ArrayLike, metal: ArrayLike = False) -> list[str]:
    """Return what to know of each crystal before believing its derived properties, ``""`` for nothing.

    Args:
        poisson: Poisson's ratios (n,).
        metal: What `cgnn.physics.chemistry.is_metal` says of each (n,).
    """
    nu = np.atleast_1d(np.asarray(poisson, dtype=np.float64))
    metals = np.broadcast_to(np.asarray(metal, dtype=np.bool_), nu.shape)
    barred = ", ".join(name for name, relation in RELATIONS.items() if not relation.for_metals)
    low, high = hardness.POISSON_RANGE
    ranged = ", ".join(name for name, relation in RELATIONS.items() if relation.poisson == hardness.POISSON_RANGE)
    outside = (nu < low) | (nu > high)
    return [
        "; ".join(
            [f"metal or alloy: not valid: {barred}"] * bool(is_one)
            + [f"Poisson's ratio {value:.2f} outside {low:g} to {high:g}: not valid: {ranged}"] * bool(is_out)
        )
        for value, is_one, is_out in zip(nu, metals, outside, strict=True)
    ]
