"""Isotropic elasticity: what follows from bulk and shear modulus alone, or with density and volume per atom.

All functions work elementwise on numbers and arrays that broadcast; ``nan`` is unknown and stays ``nan``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cgnn.errors import DataError

Array = NDArray[np.float64]

BOLTZMANN = 1.380649e-23  # J/K, exact (SI 2019)
PLANCK = 6.62607015e-34  # J s, exact (SI 2019)
DALTON = 1.66053906660e-27  # kg (CODATA 2018)


def positive(name: str, values: ArrayLike) -> Array:
    """Return values that must be above zero as an array; ``nan`` passes.

    Args:
        name: What they are, for the message.
        values: Numbers of any shape.

    Raises:
        DataError: A value is zero, negative or infinite; names the quantity, the first such value and its place.
    """
    found = np.asarray(values, dtype=np.float64)
    bad = (found <= 0) | np.isinf(found)
    if bad.any():
        place = np.argwhere(np.atleast_1d(bad))[0].tolist()
        where = f" at {', '.join(map(str, place))}" if found.ndim else ""
        raise DataError(f"{name}{where}: expected a finite number above 0, got {found[bad].flat[0]:g}")
    return found


def moduli(bulk: ArrayLike, shear: ArrayLike) -> tuple[Array, Array]:
    """Return both moduli as arrays.

    Raises:
        DataError: One is zero, negative or infinite.
    """
    return positive("bulk modulus", bulk), positive("shear modulus", shear)


def youngs_modulus(bulk: ArrayLike, shear: ArrayLike) -> Array:
    r"""Return Young's modulus (GPa).

    .. math:: E = \frac{9 K G}{3 K + G}

    Args:
        bulk: Bulk modulus K (GPa).
        shear: Shear modulus G (GPa), broadcastable to K.

    Raises:
        DataError: A modulus is not above zero.

    Source: Landau & Lifshitz, Theory of Elasticity, 3rd ed. (1986), eq. 5.9.
    """
    K, G = moduli(bulk, shear)
    return np.asarray(9 * K * G / (3 * K + G))


def poisson_ratio(bulk: ArrayLike, shear: ArrayLike) -> Array:
    r"""Return Poisson's ratio: between -1 and 1/2 for every pair of positive moduli.

    .. math:: \nu = \frac{3 K - 2 G}{2 (3 K + G)}

    Args:
        bulk: Bulk modulus K (GPa).
        shear: Shear modulus G (GPa).

    Raises:
        DataError: A modulus is not above zero.

    Source: Landau & Lifshitz, Theory of Elasticity, 3rd ed. (1986), eq. 5.7.
    """
    K, G = moduli(bulk, shear)
    return np.asarray((3 * K - 2 * G) / (2 * (3 * K + G)))


def inside(poisson: ArrayLike) -> Array:
    """Return Poisson's ratios with ``nan`` in place of those no stable isotropic solid has (not in -1 ... 1/2)."""
    nu = np.asarray(poisson, dtype=np.float64)
    return np.where((nu > -1) & (nu < 0.5), nu, np.nan)


def pugh_ratio(bulk: ArrayLike, shear: ArrayLike) -> Array:
    r"""Return Pugh's ratio K/G; metals above about 1.75 tend to be ductile.

    Args:
        bulk: Bulk modulus K (GPa).
        shear: Shear modulus G (GPa).

    Raises:
        DataError: A modulus is not above zero.

    Source: Pugh, Phil. Mag. 45, 823 (1954), doi:10.1080/14786440808520496.
    """
    K, G = moduli(bulk, shear)
    return np.asarray(K / G)


def longitudinal_velocity(bulk: ArrayLike, shear: ArrayLike, density: ArrayLike) -> Array:
    r"""Return the longitudinal velocity of sound (km/s).

    .. math:: v_l = \sqrt{(K + 4 G / 3) / \rho}

    Args:
        bulk: Bulk modulus K (GPa).
        shear: Shear modulus G (GPa).
        density: Mass density (g/cm³).

    Raises:
        DataError: An argument is not above zero.

    Source: Landau & Lifshitz, Theory of Elasticity, 3rd ed. (1986), section 22.
    """
    K, G = moduli(bulk, shear)
    return np.asarray(np.sqrt((K + 4 * G / 3) / positive("density", density)))  # sqrt(GPa cm³/g) is km/s


def transverse_velocity(shear: ArrayLike, density: ArrayLike) -> Array:
    r"""Return the transverse velocity of sound (km/s).

    .. math:: v_t = \sqrt{G / \rho}

    Args:
        shear: Shear modulus G (GPa).
        density: Mass density (g/cm³).

    Raises:
        DataError: An argument is not above zero.

    Source: Landau & Lifshitz, Theory of Elasticity, 3rd ed. (1986), section 22.
    """
    return np.asarray(np.sqrt(positive("shear modulus", shear) / positive("density", density)))


def mean_velocity(bulk: ArrayLike, shear: ArrayLike, density: ArrayLike) -> Array:
    r"""Return Debye's mean velocity of sound (km/s).

    .. math:: v_m = \left[\tfrac13 \left(v_l^{-3} + 2 v_t^{-3}\right)\right]^{-1/3}

    Args:
        bulk: Bulk modulus K (GPa).
        shear: Shear modulus G (GPa).
        density: Mass density (g/cm³).

    Raises:
        DataError: An argument is not above zero.

    Source: Anderson, J. Phys. Chem. Solids 24, 909 (1963), doi:10.1016/0022-3697(63)90067-2.
    """
    slow = longitudinal_velocity(bulk, shear, density) ** -3.0 + 2 * transverse_velocity(shear, density) ** -3.0
    return np.asarray((slow / 3) ** (-1 / 3))


def debye_temperature(bulk: ArrayLike, shear: ArrayLike, volume_per_atom: ArrayLike, density: ArrayLike) -> Array:
    r"""Return the Debye temperature of the elastic continuum (K).

    .. math:: \theta = \frac{h}{k_B} \left(\frac{3}{4 \pi V_0}\right)^{1/3} v_m

    Args:
        bulk: Bulk modulus K (GPa).
        shear: Shear modulus G (GPa).
        volume_per_atom: V0 (Å³).
        density: Mass density (g/cm³).

    Raises:
        DataError: An argument is not above zero.

    Source: Anderson, J. Phys. Chem. Solids 24, 909 (1963), doi:10.1016/0022-3697(63)90067-2; valid for low
    temperature moduli and sound that is nearly isotropic.
    """
    V = positive("volume per atom", volume_per_atom) * 1e-30
    speed = mean_velocity(bulk, shear, density) * 1e3
    return np.asarray(PLANCK / BOLTZMANN * np.cbrt(3 / (4 * np.pi * V)) * speed)
