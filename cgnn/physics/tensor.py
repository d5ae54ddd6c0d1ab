"""The full elastic tensor: averages, anisotropy and mechanical stability.

Tensors are 6 x 6 stiffness matrices in Voigt's notation (xx, yy, zz, yz, xz, xy), GPa, and may be stacked (..., 6, 6).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cgnn.errors import DataError, choose
from cgnn.physics.elastic import Array

Conditions = dict[str, Array]

TOLERANCE = 0.05
"""Deviation from the form of a crystal class, in parts of the largest constant, that passes as noise."""


def stiffness(tensor: ArrayLike) -> Array:
    """Return elastic tensors as arrays, made exactly symmetric.

    Args:
        tensor: C (GPa), (..., 6, 6).

    Raises:
        DataError: Another shape, a number that is not finite, or a tensor that is not symmetric.
    """
    C = np.asarray(tensor, dtype=np.float64)
    if C.shape[-2:] != (6, 6):
        raise DataError(f"elastic tensor: expected 6 x 6 numbers, got {' x '.join(map(str, C.shape)) or 'one number'}")
    if not np.isfinite(C).all():
        raise DataError("elastic tensor: expected finite numbers")
    across = np.swapaxes(C, -1, -2)
    if (np.abs(C - across) > TOLERANCE * _largest(C)).any():
        raise DataError("elastic tensor: expected a symmetric matrix")
    return (C + across) / 2


def voigt(tensor: ArrayLike) -> tuple[Array, Array]:
    r"""Return Voigt's bulk and shear modulus (GPa), those of equal strain: upper bounds, each (...).

    .. math:: K = \frac{a + 2 b}{9}, \quad G = \frac{a - b + 3 c}{15}

    with a = C11 + C22 + C33, b = C12 + C13 + C23, c = C44 + C55 + C66.

    Args:
        tensor: C (GPa), (..., 6, 6).

    Source: Hill, Proc. Phys. Soc. A 65, 349 (1952), doi:10.1088/0370-1298/65/5/307.
    """
    a, b, c = _sums(stiffness(tensor))
    return (a + 2 * b) / 9, (a - b + 3 * c) / 15


def reuss(tensor: ArrayLike) -> tuple[Array, Array]:
    r"""Return Reuss' bulk and shear modulus (GPa), those of equal stress: lower bounds, each (...).

    .. math:: K = \frac{1}{a + 2 b}, \quad G = \frac{15}{4 a - 4 b + 3 c}

    with a, b and c as in `voigt`, of the compliance S = C^-1.

    Args:
        tensor: C (GPa), (..., 6, 6).

    Raises:
        DataError: The tensor can't be inverted.

    Source: Hill, Proc. Phys. Soc. A 65, 349 (1952), doi:10.1088/0370-1298/65/5/307.
    """
    try:
        a, b, c = _sums(np.asarray(np.linalg.inv(stiffness(tensor))))
    except np.linalg.LinAlgError:
        raise DataError("elastic tensor: can't be inverted: the crystal does not resist some strain") from None
    return 1 / (a + 2 * b), 15 / (4 * a - 4 * b + 3 * c)


def hill(tensor: ArrayLike) -> tuple[Array, Array]:
    """Return Hill's bulk and shear modulus (GPa), the means of Voigt's and Reuss', each (...).

    Args:
        tensor: C (GPa), (..., 6, 6).

    Source: Hill, Proc. Phys. Soc. A 65, 349 (1952), doi:10.1088/0370-1298/65/5/307.
    """
    upper, lower = voigt(tensor), reuss(tensor)
    return (upper[0] + lower[0]) / 2, (upper[1] + lower[1]) / 2


def universal_anisotropy(tensor: ArrayLike) -> Array:
    r"""Return the universal anisotropy index (...): 0 for an isotropic crystal, positive for all other stable ones.

    .. math:: A^U = 5 \frac{G_V}{G_R} + \frac{K_V}{K_R} - 6

    Args:
        tensor: C (GPa), (..., 6, 6).

    Source: Ranganathan & Ostoja-Starzewski, Phys. Rev. Lett. 101, 055504 (2008), doi:10.1103/PhysRevLett.101.055504.
    """
    upper, lower = voigt(tensor), reuss(tensor)
    return np.asarray(5 * upper[1] / lower[1] + upper[0] / lower[0] - 6)


def is_stable(tensor: ArrayLike) -> NDArray[np.bool_]:
    """Say whether a crystal of any class resists every strain: all eigenvalues of C are above zero (...).

    Args:
        tensor: C (GPa), (..., 6, 6).

    Source: Born, Proc. Camb. Phil. Soc. 36, 160 (1940).
    """
    return np.asarray((np.linalg.eigvalsh(stiffness(tensor)) > 0).all(axis=-1))


def born_conditions(tensor: ArrayLike, crystal_class: str) -> Conditions:
    """Return the conditions of stability of a crystal class: what must be above zero -> its value (...).

    Args:
        tensor: C (GPa), (..., 6, 6), with the axes that are usual for the class.
        crystal_class: A name in `BORN`.

    Raises:
        ConfigError: No such class.
        DataError: The tensor does not have the form of the class; says by how much.

    Source: Mouhat & Coudert, Phys. Rev. B 90, 224104 (2014), doi:10.1103/PhysRevB.90.224104.
    """
    conditions, form = choose(BORN, crystal_class, "crystal class")
    C = stiffness(tensor)
    off = np.max(np.abs(C - _shaped(C, form)) / _largest(C), initial=0.0)
    if off > TOLERANCE:
        raise DataError(f"elastic tensor: not of class {crystal_class!r}: off by {off:.0%} of its largest constant")
    return conditions(C)


def _at(C: Array, i: int, j: int) -> Array:
    return np.asarray(C[..., i - 1, j - 1])


def _cubic(C: Array) -> Conditions:
    c11, c12, c44 = _at(C, 1, 1), _at(C, 1, 2), _at(C, 4, 4)
    return {"C11 - C12": c11 - c12, "C11 + 2 C12": c11 + 2 * c12, "C44": c44}


def _hexagonal(C: Array) -> Conditions:
    c11, c12, c13, c33 = _at(C, 1, 1), _at(C, 1, 2), _at(C, 1, 3), _at(C, 3, 3)
    return {
        "C11 - |C12|": c11 - np.abs(c12),
        "C33 (C11 + C12) - 2 C13^2": c33 * (c11 + c12) - 2 * c13**2,
        "C44": _at(C, 4, 4),
        "C66": _at(C, 6, 6),
    }


def _tetragonal_2(C: Array) -> Conditions:
    softer = _at(C, 6, 6) * (_at(C, 1, 1) - _at(C, 1, 2)) - 2 * _at(C, 1, 6) ** 2
    return {**_hexagonal(C), "C66 (C11 - C12) - 2 C16^2": softer}


def _rhombohedral(C: Array) -> Conditions:
    shears = _at(C, 4, 4) * (_at(C, 1, 1) - _at(C, 1, 2)) - 2 * _at(C, 1, 4) ** 2 - 2 * _at(C, 1, 5) ** 2
    return {**_hexagonal(C), "C44 (C11 - C12) - 2 C14^2 - 2 C15^2": shears}


def _orthorhombic(C: Array) -> Conditions:
    c11, c22, c33 = (_at(C, i, i) for i in (1, 2, 3))
    c12, c13, c23 = _at(C, 1, 2), _at(C, 1, 3), _at(C, 2, 3)
    return {
        "C11": c11,
        "C11 C22 - C12^2": c11 * c22 - c12**2,
        "det C(1..3)": c11 * c22 * c33 + 2 * c12 * c13 * c23 - c11 * c23**2 - c22 * c13**2 - c33 * c12**2,
        "C44": _at(C, 4, 4),
        "C55": _at(C, 5, 5),
        "C66": _at(C, 6, 6),
    }


def _minors(C: Array) -> Conditions:
    """Sylvester's criterion: all leading minors; there is no shorter form without symmetry."""
    return {f"minor {k}": np.asarray(np.linalg.det(C[..., :k, :k])) for k in range(1, 7)}


_FORMS = {
    "cubic": ("11=22=33", "12=13=23", "44=55=66"),
    "hexagonal": ("11=22", "33", "12", "13=23", "44=55", "66"),
    "tetragonal_2": ("11=22", "33", "12", "13=23", "44=55", "66", "16=-26"),
    "rhombohedral_1": ("11=22", "33", "12", "13=23", "44=55", "66", "14=-24=56"),
    "rhombohedral_2": ("11=22", "33", "12", "13=23", "44=55", "66", "14=-24=56", "15=-25=-46"),
    "orthorhombic": ("11", "22", "33", "12", "13", "23", "44", "55", "66"),
    "monoclinic": ("11", "22", "33", "12", "13", "23", "44", "55", "66", "15", "25", "35", "46"),
}

BORN: dict[str, tuple[Callable[[Array], Conditions], tuple[str, ...] | None]] = {
    "cubic": (_cubic, _FORMS["cubic"]),
    "hexagonal": (_hexagonal, _FORMS["hexagonal"]),
    "tetragonal_1": (_hexagonal, _FORMS["hexagonal"]),
    "tetragonal_2": (_tetragonal_2, _FORMS["tetragonal_2"]),
    "rhombohedral_1": (_rhombohedral, _FORMS["rhombohedral_1"]),
    "rhombohedral_2": (_rhombohedral, _FORMS["rhombohedral_2"]),
    "orthorhombic": (_orthorhombic, _FORMS["orthorhombic"]),
    "monoclinic": (_minors, _FORMS["monoclinic"]),
    "triclinic": (_minors, None),
}
"""Crystal class -> its conditions and the form of its tensor (constants that are equal; all others are zero).

Classes with a number are those of Laue groups: tetragonal_1 is 4/mmm, tetragonal_2 4/m, rhombohedral_1 -3m,
rhombohedral_2 -3. Monoclinic crystals have their axis along b."""


def _shaped(C: Array, form: tuple[str, ...] | None) -> Array:
    """Return the tensors of the given form that are nearest, with the mean over equal constants."""
    if form is None:
        return C
    shaped = np.zeros_like(C)
    for equals in form:
        places = [(-1 if name[0] == "-" else 1, int(name[-2]) - 1, int(name[-1]) - 1) for name in equals.split("=")]
        mean = np.mean([sign * C[..., i, j] for sign, i, j in places], axis=0)
        for sign, i, j in places:
            shaped[..., i, j] = shaped[..., j, i] = sign * mean
    return shaped


def _largest(C: Array) -> Array:
    return np.asarray(np.maximum(np.abs(C).max(axis=(-1, -2), keepdims=True), np.finfo(np.float64).tiny))


def _sums(C: Array) -> tuple[Array, Array, Array]:
    return (
        np.asarray(_at(C, 1, 1) + _at(C, 2, 2) + _at(C, 3, 3)),
        np.asarray(_at(C, 1, 2) + _at(C, 1, 3) + _at(C, 2, 3)),
        np.asarray(_at(C, 4, 4) + _at(C, 5, 5) + _at(C, 6, 6)),
    )
