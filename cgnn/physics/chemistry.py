"""What the elements of a crystal say about its bonds: relations for covalent and ionic crystals fail for metals."""

from __future__ import annotations

from collections.abc import Iterable

_SYMBOLS = (
    "Li Be Na Mg Al K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Rb Sr Y Zr Nb Mo Tc Ru Rh Pd Ag Cd In Sn Cs Ba La Ce Pr "
    "Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi Po Fr Ra Ac Th Pa U Np Pu Am Cm Bk "
    "Cf Es Fm Md No Lr"
)
METALS = frozenset(_SYMBOLS.split())
"""Metallic elements. B, Si, Ge, As, Sb, Te and At are none: their crystals are held together by covalent bonds."""


def is_metal(elements: Iterable[str], band_gap: float | None = None) -> bool:
    """Say whether a crystal is a metal, an intermetallic or an alloy, for which Mazhnik and Oganov's model fails.

    It is one where all its elements are metals, unless a band gap above zero says otherwise (Mg2Sn). A gap of zero
    alone makes none: WC, TiN and TiB2 conduct, but bonds with their light atoms make them hard, and the model gives
    their hardness. So a conductor with a nonmetal in it may rank as superhard.

    Args:
        elements: Symbols of its elements.
        band_gap: In eV, where it is known; ``nan`` is unknown.
    """
    names = set(elements)
    has_gap = band_gap is not None and band_gap > 0
    return bool(names) and names <= METALS and not has_gap
