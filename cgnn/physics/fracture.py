"""Fracture toughness from bulk and shear modulus and the volume per atom: published relations."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from cgnn.physics.elastic import Array, inside, moduli, poisson_ratio, positive, youngs_modulus

_TO_ROOT_METRE = 1e-5  # sixth root of Å³ in m^½
_TO_MPA = 1e3


def zeta(poisson: ArrayLike) -> Array:
    r"""Return the effective function of Poisson's ratio in Mazhnik and Oganov's fracture toughness.

    .. math:: \zeta(\nu) = \frac{1 - 13.7 \nu + 48.6 \nu^2}{1 - 15.2 \nu + 70.2 \nu^2 - 81.5 \nu^3}

    The numerator has no real zero and the denominator one, at 0.573: inside -1 < nu < 1/2 there is neither pole nor
    change of sign. It rises from 0.38 to 8.3 there, steepest at nu = 0.14, where d ln zeta / d nu = 11.2: an error of
    0.01 in nu is one of 17 % in the toughness.

    Args:
        poisson: Poisson's ratio.

    Returns:
        zeta, ``nan`` outside -1 < nu < 1/2.

    Source: Mazhnik & Oganov, J. Appl. Phys. 126, 125109 (2019), doi:10.1063/1.5113622.
    """
    nu = inside(poisson)
    return np.asarray((1 - 13.7 * nu + 48.6 * nu**2) / (1 - 15.2 * nu + 70.2 * nu**2 - 81.5 * nu**3))


def toughness_mo(bulk: ArrayLike, shear: ArrayLike, volume_per_atom: ArrayLike) -> Array:
    r"""Return the fracture toughness of Mazhnik and Oganov (MPa·m^½).

    .. math:: K_{IC} = \alpha_0^{-1/2} V_0^{1/6} [\zeta(\nu) E]^{3/2}, \quad \alpha_0 = 8840\ \mathrm{GPa}

    Args:
        bulk: Bulk modulus K (GPa).
        shear: Shear modulus G (GPa).
        volume_per_atom: V0 (Å³).

    Raises:
        DataError: An argument is not above zero.

    Source: Mazhnik & Oganov, J. Appl. Phys. 126, 125109 (2019), doi:10.1063/1.5113622; fitted on covalent and ionic
    crystals; metals, intermetallics and alloys are tougher by a factor that is not in it.
    """
    V = positive("volume per atom", volume_per_atom)
    stiffness = (zeta(poisson_ratio(bulk, shear)) * youngs_modulus(bulk, shear)) ** 1.5
    return np.asarray(8840**-0.5 * V ** (1 / 6) * stiffness * (_TO_ROOT_METRE * _TO_MPA))


def toughness_niu(bulk: ArrayLike, shear: ArrayLike, volume_per_atom: ArrayLike) -> Array:
    r"""Return the fracture toughness of Niu et al. for covalent and ionic crystals (MPa·m^½).

    .. math:: K_{IC} = V_0^{1/6}\, G\, (K / G)^{1/2}

    Args:
        bulk: Bulk modulus K (GPa).
        shear: Shear modulus G (GPa).
        volume_per_atom: V0 (Å³).

    Raises:
        DataError: An argument is not above zero.

    Source: Niu, Niu & Oganov, J. Appl. Phys. 125, 065105 (2019), doi:10.1063/1.5066311, without their enhancement
    factor, which metals and intermetallics need.
    """
    K, G = moduli(bulk, shear)
    V = positive("volume per atom", volume_per_atom)
    return np.asarray(V ** (1 / 6) * np.sqrt(K * G) * (_TO_ROOT_METRE * _TO_MPA))
