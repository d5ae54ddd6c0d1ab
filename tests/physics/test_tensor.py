"""Averages and stability of full elastic tensors: against pymatgen, and conditions against eigenvalues."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from pymatgen.analysis.elasticity import ElasticTensor

from cgnn.errors import ConfigError, DataError
from cgnn.physics.elastic import youngs_modulus
from cgnn.physics.tensor import BORN, born_conditions, hill, is_stable, reuss, stiffness, universal_anisotropy, voigt

SILICON = (165.7, 63.9, 79.6)  # C11, C12, C44 (GPa) at 300 K: McSkimin & Andreatch (1964), doi:10.1063/1.1702809


def cubic(c11: float, c12: float, c44: float) -> NDArray[np.float64]:
    C = np.diag([c11 - c12] * 3 + [c44] * 3)
    C[:3, :3] += c12
    return C


def random_tensors(form: tuple[str, ...] | None, count: int = 400) -> NDArray[np.float64]:
    """Return tensors of a form, about half of them stable."""
    random = np.random.default_rng(3)
    root = random.normal(size=(count, 6, 6)) * 4
    C = root @ np.swapaxes(root, 1, 2) + np.eye(6) * random.normal(0, 20, size=(count, 1, 1))
    if form is None:
        return C
    shaped = np.zeros_like(C)
    for equals in form:
        value = random.normal(0, 30, count) + (60 if equals[0] == equals[1] else 0)
        for name in equals.split("="):
            i, j = int(name[-2]) - 1, int(name[-1]) - 1
            shaped[:, i, j] = shaped[:, j, i] = -value if name[0] == "-" else value
    return shaped


def test_averages_as_pymatgen_has_them() -> None:
    tensors = random_tensors(BORN["orthorhombic"][1])
    stable = tensors[is_stable(tensors)]
    assert 20 < len(stable) < len(tensors) - 20
    for C in stable:
        theirs = ElasticTensor.from_voigt(C)
        assert voigt(C) == pytest.approx((theirs.k_voigt, theirs.g_voigt), rel=1e-9)
        assert reuss(C) == pytest.approx((theirs.k_reuss, theirs.g_reuss), rel=1e-9)
        assert hill(C) == pytest.approx((theirs.k_vrh, theirs.g_vrh), rel=1e-9)
        assert float(universal_anisotropy(C)) == pytest.approx(theirs.universal_anisotropy, rel=1e-7, abs=1e-7)
        assert float(youngs_modulus(*hill(C))) == pytest.approx(theirs.y_mod / 1e9, rel=1e-9)  # in Pa there
    assert np.allclose(hill(stable)[1], [hill(C)[1] for C in stable], rtol=1e-12)


def test_silicon() -> None:
    C = cubic(*SILICON)
    c11, c12, c44 = SILICON
    assert float(voigt(C)[0]) == pytest.approx((c11 + 2 * c12) / 3, rel=1e-12)
    assert float(voigt(C)[1]) == pytest.approx((c11 - c12 + 3 * c44) / 5, rel=1e-12)
    assert float(reuss(C)[1]) == pytest.approx(5 * (c11 - c12) * c44 / (4 * c44 + 3 * (c11 - c12)), rel=1e-12)
    assert float(hill(C)[1]) == pytest.approx(66.5, abs=0.1)
    zener = 2 * c44 / (c11 - c12)
    assert float(universal_anisotropy(C)) == pytest.approx(6 / 5 * (zener**0.5 - zener**-0.5) ** 2, rel=1e-9)
    assert set(born_conditions(C, "cubic")) == {"C11 - C12", "C11 + 2 C12", "C44"}


def test_isotropic_is_not_anisotropic() -> None:
    assert float(universal_anisotropy(cubic(300, 100, 100))) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("name", BORN)
def test_conditions_hold_exactly_where_all_eigenvalues_are_positive(name: str) -> None:
    tensors = random_tensors(BORN[name][1])
    if name in ("rhombohedral_1", "rhombohedral_2", "hexagonal"):  # with C66 = (C11 - C12) / 2 for these
        tensors[:, 5, 5] = (tensors[:, 0, 0] - tensors[:, 0, 1]) / 2
    expected = (np.linalg.eigvalsh(tensors) > 0).all(axis=1)
    assert 5 < expected.sum() < len(expected) - 5
    conditions = born_conditions(tensors, name)
    assert np.array_equal(np.all([values > 0 for values in conditions.values()], axis=0), expected)
    assert np.array_equal(is_stable(tensors), expected)


def test_a_tensor_of_another_class_is_refused_and_noise_is_not() -> None:
    C = cubic(*SILICON)
    C[0, 0] += 2
    assert born_conditions(C, "cubic")["C44"] == pytest.approx(SILICON[2])
    C[0, 0] += 60
    with pytest.raises(DataError, match=r"not of class 'cubic': off by \d+% of its largest constant"):
        born_conditions(C, "cubic")
    assert (born_conditions(C, "orthorhombic")["C11"] > 0).all()
    with pytest.raises(ConfigError, match=r"unknown crystal class 'cubik'; did you mean 'cubic'\?"):
        born_conditions(C, "cubik")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (np.eye(3), "expected 6 x 6 numbers, got 3 x 3"),
        (5.0, "expected 6 x 6 numbers, got one number"),
        (np.full((6, 6), np.nan), "expected finite numbers"),
        (np.triu(np.ones((6, 6))), "expected a symmetric matrix"),
    ],
)
def test_what_is_no_tensor(wrong: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        stiffness(wrong)  # type: ignore[arg-type]


def test_a_singular_tensor_has_no_reuss_average() -> None:
    with pytest.raises(DataError, match="can't be inverted"):
        reuss(np.zeros((6, 6)))
