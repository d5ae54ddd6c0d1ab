"""Vickers hardness from bulk and shear modulus: published relations."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cgnn.physics.elastic import Array, inside, moduli, poisson_ratio, positive, youngs_modulus

SUPERHARD = 40.0
"""Vickers hardness (GPa) from which a material is called superhard (Haines et al., Annu. Rev. Mater. Res. 31, 1
(2001), doi:10.1146/annurev.matsci.31.1.1)."""

POISSON_RANGE = (0.0, 0.4)
"""Poisson's ratios for which we hold Mazhnik and Oganov's model for valid: below, chi grows towards its pole where
nothing was fitted; above, it turns. Our reading of the formulas, not a sentence of the paper."""


def chi(poisson: ArrayLike) -> Array:
    r"""Return the effective function of Poisson's ratio in Mazhnik and Oganov's hardness.

    .. math:: \chi(\nu) = \frac{1 - 8.5 \nu + 19.5 \nu^2}{1 - 7.5 \nu + 12.2 \nu^2 + 19.6 \nu^3}

    The numerator has no real zero and the denominator one, at -1.038: inside -1 < nu < 1/2 there is neither pole nor
    change of sign. It falls from 1 at nu = 0 to 0.479 at 0.238 and rises to 0.598 at 0.426; below zero it grows
    towards the pole, where nothing was fitted.

    Args:
        poisson: Poisson's ratio.

    Returns:
        chi, ``nan`` outside -1 < nu < 1/2.

    Source: Mazhnik & Oganov, J. Appl. Phys. 126, 125109 (2019), doi:10.1063/1.5113622.
    """
    nu = inside(poisson)
    return np.asarray((1 - 8.5 * nu + 19.5 * nu**2) / (1 - 7.5 * nu + 12.2 * nu**2 + 19.6 * nu**3))


def hardness_mo(bulk: ArrayLike, shear: ArrayLike) -> Array:
    r"""Return the Vickers hardness of Mazhnik and Oganov (GPa).

    .. math:: H = \gamma_0 \chi(\nu) E, \quad \gamma_0 = 0.096

    Args:
        bulk: Bulk modulus K (GPa).
        shear: Shear modulus G (GPa).

    Raises:
        DataError: A modulus is not above zero.

    Source: Mazhnik & Oganov, J. Appl. Phys. 126, 125109 (2019), doi:10.1063/1.5113622; fitted on covalent and ionic
    crystals, not valid for metals and alloys (`cgnn.physics.chemistry.is_metal`).
    """
    return np.asarray(0.096 * chi(poisson_ratio(bulk, shear)) * youngs_modulus(bulk, shear))


def hardness_chen(bulk: ArrayLike, shear: ArrayLike) -> Array:
    r"""Return the Vickers hardness of Chen et al. (GPa), never below zero.

    .. math:: H = \max\left(0,\; 2 (k^2 G)^{0.585} - 3\right), \quad k = G / K

    Args:
        bulk: Bulk modulus K (GPa).
        shear: Shear modulus G (GPa).

    Raises:
        DataError: A modulus is not above zero.

    Source: Chen, Niu, Li & Li, Intermetallics 19, 1275 (2011), doi:10.1016/j.intermet.2011.03.026; fitted on
    polycrystals and metallic glasses; the 3 GPa taken off makes it poor for soft materials.
    """
    K, G = moduli(bulk, shear)
    return np.asarray(np.maximum(2 * ((G / K) ** 2 * G) ** 0.585 - 3, 0.0))


def hardness_tian(bulk: ArrayLike, shear: ArrayLike) -> Array:
    r"""Return the Vickers hardness of Tian et al. (GPa).

    .. math:: H = 0.92\, k^{1.137} G^{0.708}, \quad k = G / K

    Args:
        bulk: Bulk modulus K (GPa).
        shear: Shear modulus G (GPa).

    Raises:
        DataError: A modulus is not above zero.

    Source: Tian, Xu & Zhao, Int. J. Refract. Met. Hard Mater. 33, 93 (2012), doi:10.1016/j.ijrmhm.2012.02.021; Chen's
    data fitted again without his constant, so that it never falls below zero.
    """
    K, G = moduli(bulk, shear)
    return np.asarray(0.92 * (G / K) ** 1.137 * G**0.708)


def hardness_teter(shear: ArrayLike) -> Array:
    r"""Return the Vickers hardness of Teter (GPa).

    .. math:: H = 0.151\, G

    Args:
        shear: Shear modulus G (GPa).

    Raises:
        DataError: The modulus is not above zero.

    Source: Teter, MRS Bull. 23(1), 22 (1998), doi:10.1557/S0883769400031420; fitted on hard, brittle materials.
    """
    return np.asarray(0.151 * positive("shear modulus", shear))


def is_superhard(hardness: ArrayLike, poisson: ArrayLike, metal: ArrayLike = False) -> NDArray[np.bool_]:
    """Say which crystals rank as superhard: 40 GPa and more, where Mazhnik and Oganov's hardness means something.

    It means nothing for metals, nor outside `POISSON_RANGE`: of the moduli in the Materials Project those with a
    negative Poisson's ratio are mostly failed calculations or unstable crystals, and chi makes them hard (CrH 90 GPa,
    SiB 87 GPa).

    Args:
        hardness: Vickers hardness (GPa), such as a lower bound of it.
        poisson: Poisson's ratios.
        metal: What `cgnn.physics.chemistry.is_metal` says of each.
    """
    nu = np.asarray(poisson, dtype=np.float64)
    is_valid = (nu >= POISSON_RANGE[0]) & (nu <= POISSON_RANGE[1]) & ~np.asarray(metal, dtype=np.bool_)
    return np.asarray(is_valid & (np.asarray(hardness, dtype=np.float64) >= SUPERHARD))
