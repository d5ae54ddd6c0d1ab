"""Heat and expansion from elastic moduli: least conductivities, Slack's conductivity, the limit of expansion."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from cgnn.physics.elastic import (
    BOLTZMANN,
    DALTON,
    Array,
    debye_temperature,
    inside,
    longitudinal_velocity,
    poisson_ratio,
    positive,
    transverse_velocity,
    youngs_modulus,
)

ROOM = 300.0
"""Temperature (K) at which Slack's conductivity is given unless told otherwise."""


def gruneisen(bulk: ArrayLike, shear: ArrayLike) -> Array:
    r"""Return the Grüneisen parameter that belongs to Poisson's ratio.

    .. math:: \gamma = \frac{3}{2} \frac{1 + \nu}{2 - 3 \nu}

    Args:
        bulk: Bulk modulus K (GPa).
        shear: Shear modulus G (GPa).

    Raises:
        DataError: A modulus is not above zero.

    Source: Belomestnykh, Tech. Phys. Lett. 30, 91 (2004), doi:10.1134/1.1666949, written with the velocities of sound;
    with nu Belomestnykh & Tesleva, Tech. Phys. 49, 1098 (2004). Quasi-isotropic polycrystals, within about 15 % of
    thermal data.
    """
    nu = poisson_ratio(bulk, shear)
    return np.asarray(1.5 * (1 + nu) / (2 - 3 * nu))


def conductivity_clarke(bulk: ArrayLike, shear: ArrayLike, volume_per_atom: ArrayLike, density: ArrayLike) -> Array:
    r"""Return Clarke's least thermal conductivity (W/(m K)), that of high temperatures.

    .. math:: \kappa_{min} = 0.87\, k_B\, V_0^{-2/3} \sqrt{E / \rho}

    Args:
        bulk: Bulk modulus K (GPa).
        shear: Shear modulus G (GPa).
        volume_per_atom: V0 (Å³).
        density: Mass density (g/cm³).

    Raises:
        DataError: An argument is not above zero.

    Source: Clarke, Surf. Coat. Technol. 163, 67 (2003), doi:10.1016/S0257-8972(02)00593-5; insulators well above their
    Debye temperature.
    """
    V = positive("volume per atom", volume_per_atom) * 1e-30
    speed = np.sqrt(youngs_modulus(bulk, shear) / positive("density", density)) * 1e3
    return np.asarray(0.87 * BOLTZMANN * V ** (-2 / 3) * speed)


def conductivity_cahill(bulk: ArrayLike, shear: ArrayLike, volume_per_atom: ArrayLike, density: ArrayLike) -> Array:
    r"""Return Cahill's least thermal conductivity in the limit of high temperatures (W/(m K)).

    .. math:: \kappa_{min} = \tfrac12 (\pi / 6)^{1/3}\, k_B\, V_0^{-2/3} (v_l + 2 v_t)

    Args:
        bulk: Bulk modulus K (GPa).
        shear: Shear modulus G (GPa).
        volume_per_atom: V0 (Å³).
        density: Mass density (g/cm³).

    Raises:
        DataError: An argument is not above zero.

    Source: Cahill, Watson & Pohl, Phys. Rev. B 46, 6131 (1992), doi:10.1103/PhysRevB.46.6131; amorphous and strongly
    disordered solids above their Debye temperature.
    """
    V = positive("volume per atom", volume_per_atom) * 1e-30
    speeds = longitudinal_velocity(bulk, shear, density) + 2 * transverse_velocity(shear, density)
    return np.asarray(0.5 * (np.pi / 6) ** (1 / 3) * BOLTZMANN * V ** (-2 / 3) * speeds * 1e3)


def conductivity_slack(
    bulk: ArrayLike,
    shear: ArrayLike,
    volume_per_atom: ArrayLike,
    density: ArrayLike,
    atoms_per_cell: ArrayLike,
    temperature: float = ROOM,
) -> Array:
    r"""Return Slack's lattice thermal conductivity (W/(m K)).

    .. math:: \kappa = A \frac{\bar M \theta^3 \delta}{\gamma^2 n^{2/3} T},
        \quad A = \frac{2.43 \cdot 10^{-6}}{1 - 0.514 / \gamma + 0.228 / \gamma^2}

    Args:
        bulk: Bulk modulus K (GPa).
        shear: Shear modulus G (GPa).
        volume_per_atom: V0 = delta³ (Å³).
        density: Mass density (g/cm³); with V0 it gives the mean atomic mass M.
        atoms_per_cell: Atoms n of the primitive cell.
        temperature: T (K).

    Raises:
        DataError: An argument is not above zero.

    Source: Slack, J. Phys. Chem. Solids 34, 321 (1973), doi:10.1016/0022-3697(73)90092-9; A by Julian, Phys. Rev. 137,
    A128 (1965), as in Morelli & Slack (2006), doi:10.1007/0-387-25100-6_2. Crystals whose heat is carried by acoustic
    phonons that scatter each other, near and above a third of theta.
    """
    V, n = positive("volume per atom", volume_per_atom), positive("atoms per cell", atoms_per_cell)
    mass = positive("density", density) * V * (1e-27 / DALTON)
    gamma = gruneisen(bulk, shear)
    A = 2.43e-6 / (1 - 0.514 / gamma + 0.228 / gamma**2)
    theta = debye_temperature(bulk, shear, V, density)
    return np.asarray(
        A * mass * theta**3 * np.cbrt(V) / (gamma**2 * n ** (2 / 3) * positive("temperature", temperature))
    )


def expansion_factor(poisson: ArrayLike) -> Array:
    r"""Return the factor of Poisson's ratio in the limit of thermal expansion.

    .. math:: f(\nu) = \frac{2 (1 + \nu)(1 - 2 \nu)}{2 - 3 \nu} \le \frac{2 (11 - 2 \sqrt{10})}{9} = 1.039

    The largest value is at nu = (4 - sqrt 10) / 6 = 0.1396.

    Args:
        poisson: Poisson's ratio; ``nan`` outside -1 < nu < 1/2.
    """
    nu = inside(poisson)
    return np.asarray(2 * (1 + nu) * (1 - 2 * nu) / (2 - 3 * nu))


def expansion_limit(bulk: ArrayLike, shear: ArrayLike, volume_per_atom: ArrayLike) -> Array:
    r"""Return the largest linear thermal expansion that the moduli allow (1/K), with the classical heat capacity.

    .. math:: \alpha_L \le f(\nu) \frac{c_V \rho}{E}, \quad c_V \rho = \frac{3 k_B}{V_0}

    With Grüneisen's law alpha_L E = gamma (1 - 2 nu) c_V rho this is a Grüneisen parameter of at most
    2 (1 + nu) / (2 - 3 nu), four thirds of `gruneisen`.

    Args:
        bulk: Bulk modulus K (GPa).
        shear: Shear modulus G (GPa).
        volume_per_atom: V0 (Å³).

    Raises:
        DataError: An argument is not above zero.

    Source: the bound as the project's issue 6 states it (no publication is known to us); heat capacity of Dulong and
    Petit, so an upper limit at every temperature for a lattice that is nearly harmonic.
    """
    V = positive("volume per atom", volume_per_atom) * 1e-30
    E = youngs_modulus(bulk, shear) * 1e9
    return np.asarray(expansion_factor(poisson_ratio(bulk, shear)) * 3 * BOLTZMANN / (V * E))
