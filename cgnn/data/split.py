"""Dividing crystals into training, validation and test parts, without leaks between them."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from cgnn.config import SplitConfig
from cgnn.data.parts import PARTS, Split
from cgnn.data.summary import (
    CrystalSummary,
    Group,
    chemical_system,
    duplicate_groups,
    namesakes,
    reduced_counts,
    reduced_formula,
    stoichiometry,
)
from cgnn.errors import DataError, choose, unknown

_Splitter = Callable[[SplitConfig, Sequence[CrystalSummary]], Split]


def split(config: SplitConfig, crystals: Sequence[CrystalSummary]) -> Split:
    """Divide crystals as the settings say.

    The result depends on the settings and on the crystals, not on their order: ids are ranked by a hash of
    (seed, id). Shares are met as closely as whole groups allow, and every part asked for gets a crystal.

    Raises:
        ConfigError: No such method.
        DataError: No or too few crystals, an id twice, or an element, file, column or id that does not fit.
    """
    splitter = choose(SPLITS, config.method, "split method")
    if not crystals:
        raise DataError("split: no crystals to divide")
    twice = [name for name, count in Counter(c.material_id for c in crystals).items() if count > 1]
    if twice:
        raise DataError(f"split: {_some(twice)} occur more than once; ids must be unique")
    return splitter(config, crystals)


def report(split: Split, crystals: Sequence[CrystalSummary]) -> dict[str, Any]:
    """Count the parts, and what validation and test share with training.

    Returns:
        ``counts`` by part (and ``left_out``); for each nonempty part besides training a dict with the shares
        of its crystals whose reduced formula, set of elements, stoichiometry, prototype (where it is known) or
        whole structure (``duplicate``) also occurs in training, and ``elements_not_in_train``.
    """
    by_id = {crystal.material_id: crystal for crystal in crystals}
    parts = {part: [by_id[name] for name in getattr(split, part)] for part in PARTS}
    counts = {part: len(members) for part, members in parts.items()}
    overlap = {part: _overlap(parts["train"], parts[part]) for part in PARTS[1:] if parts[part]}
    return {"counts": {**counts, "left_out": split.left_out}, **overlap}


def _groups_by(key: Callable[[CrystalSummary], str], crystals: Iterable[CrystalSummary]) -> list[Group]:
    groups: dict[str, list[str]] = defaultdict(list)
    for crystal in crystals:
        groups[key(crystal)].append(crystal.material_id)
    return _with_namesakes([tuple(sorted(group)) for group in groups.values()])


def _with_namesakes(groups: list[Group]) -> list[Group]:
    together = namesakes(name for group in groups for name in group)
    return _joined(groups, together) if together else groups


def _indivisible(config: SplitConfig, crystals: Sequence[CrystalSummary]) -> list[Group]:
    if config.keep_duplicates_together:
        return _with_namesakes(duplicate_groups(crystals))
    return [(crystal.material_id,) for crystal in crystals]


def _by_share(config: SplitConfig, groups: list[Group]) -> Split:
    asked = 1 + (config.val > 0) + (config.test > 0)
    _enough(groups, asked, "training, validation and test" if asked == 3 else "every part asked for")
    number = sum(map(len, groups))
    ranked = _ranked(groups, config.seed, "parts")
    test, rest = _take(ranked, config.test, number, spare=1 + (config.val > 0))
    val, train = _take(rest, config.val, number, spare=1)
    return _finish(config, train, val, test)


def _random(config: SplitConfig, crystals: Sequence[CrystalSummary]) -> Split:
    return _by_share(config, _indivisible(config, crystals))


def _grouped(key: Callable[[CrystalSummary], str]) -> _Splitter:
    return lambda config, crystals: _by_share(config, _groups_by(key, crystals))


def _prototype(config: SplitConfig, crystals: Sequence[CrystalSummary]) -> Split:
    if any(crystal.prototype is None for crystal in crystals):
        raise DataError("split: method 'prototype' needs summaries that name it: dataset.summaries(split settings)")
    groups = _groups_by(lambda crystal: str(crystal.prototype), crystals)
    return _by_share(config, _joined(groups, _indivisible(config, crystals)))


def _joined(first: list[Group], second: list[Group]) -> list[Group]:
    """Return the smallest groups of a partition that part none of some other groups of its ids."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    place = {name: number for number, group in enumerate(first) for name in group}
    links = [(place[group[0]], place[name]) for group in second for name in group]
    rows, columns = np.array(links).T
    shape = (len(first), len(first))
    _, labels = connected_components(coo_array((np.ones(len(links)), (rows, columns)), shape=shape), directed=False)
    joined: dict[int, list[str]] = defaultdict(list)
    for label, group in zip(labels.tolist(), first, strict=True):
        joined[label] += group
    return [tuple(sorted(group)) for group in joined.values()]


def _extrapolation(config: SplitConfig, crystals: Sequence[CrystalSummary]) -> Split:
    groups = _indivisible(config, crystals)
    _enough(groups, 2 + (config.val > 0), "every part asked for")
    sign = -1.0 if config.direction == "high" else 1.0
    values = {c.material_id: sign * _number(c, config) for c in crystals if c.value is not None}
    outermost = {g: min(known) for g in groups if (known := [values[name] for name in g if name in values])}
    order = sorted(outermost, key=lambda group: (outermost[group], group[0]))[: len(groups) - 1 - (config.val > 0)]
    if not order:
        raise DataError(f"split: no crystal has a value of {config.target!r}, so none is the hardest")
    wanted = config.test * len(crystals)
    off = [abs(size - wanted) for size in accumulate(map(len, order))]
    test = set(order[: off.index(min(off)) + 1])
    ranked = _ranked([group for group in groups if group not in test], config.seed, "parts")
    val, train = _take(ranked, config.val, len(crystals), spare=1)
    return _finish(config, train, val, sorted(test))


def _number(crystal: CrystalSummary, config: SplitConfig) -> float:
    value = crystal.value
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        raise DataError(f"split: {crystal.material_id!r}: {config.target!r} is {str(value)[:40]!r}, not a number")
    return float(value)


def _column(config: SplitConfig, crystals: Sequence[CrystalSummary]) -> Split:
    parts: dict[str, list[str]] = {part: [] for part in PARTS}
    for crystal in crystals:
        if crystal.value in (None, ""):
            continue
        word = str(crystal.value).strip().lower()
        if word not in WORDS:
            known = ", ".join(WORDS)
            raise DataError(
                f"split: {crystal.material_id!r}: column {config.column!r} is {word[:40]!r}, expected one of {known}"
            )
        parts[WORDS[word]].append(crystal.material_id)
    if not parts["train"]:
        raise DataError(f"split: column {config.column!r} puts no crystal into 'train'")
    train, val, test = (tuple(sorted(parts[part])) for part in PARTS)
    left_out = len(crystals) - len(train) - len(val) - len(test)
    return Split(train, val, test, config.method, config.seed, left_out)


def _kfold(config: SplitConfig, crystals: Sequence[CrystalSummary]) -> Split:
    groups = _indivisible(config, crystals)
    _enough(groups, config.folds, f"{config.folds} folds")
    folds: list[list[Group]] = [[] for _ in range(config.folds)]
    sizes = [0] * config.folds
    for group in sorted(_ranked(groups, config.seed, "folds"), key=len, reverse=True):
        smallest = sizes.index(min(sizes))
        folds[smallest].append(group)
        sizes[smallest] += len(group)
    rest = [group for fold in folds if fold is not folds[config.fold] for group in fold]
    return _with_validation(config, rest, folds[config.fold], f"validation of fold {config.fold}")


def _element(config: SplitConfig, crystals: Sequence[CrystalSummary]) -> Split:
    element = str(config.element)
    known = sorted({symbol for crystal in crystals for symbol, _ in reduced_counts(crystal)})
    if element not in known:
        raise DataError(f"split: no crystal contains it: {unknown(element, known, 'element')}")
    groups = _indivisible(config, crystals)
    having = {c.material_id for c in crystals if c.composition.get(element, 0)}
    test = [group for group in groups if not having.isdisjoint(group)]
    return _with_validation(config, [group for group in groups if having.isdisjoint(group)], test, "validation")


def _from_file(config: SplitConfig, crystals: Sequence[CrystalSummary]) -> Split:
    stored = Split.load(str(config.file))
    known = {crystal.material_id for crystal in crystals}
    used = {*stored.train, *stored.val, *stored.test}
    if used - known:
        strange = sorted(used - known)
        raise DataError(f"{config.file}: {len(strange)} of {len(used)} ids are not in the data: {_some(strange)}")
    return Split(stored.train, stored.val, stored.test, config.method, config.seed, len(known - used))


SPLITS: dict[str, _Splitter] = {
    "random": _random,
    "kfold": _kfold,
    "composition": _grouped(reduced_formula),
    "chemical_system": _grouped(chemical_system),
    "stoichiometry": _grouped(stoichiometry),
    "prototype": _prototype,
    "element": _element,
    "extrapolation": _extrapolation,
    "column": _column,
    "file": _from_file,
}
"""Ways of dividing crystals.

``val`` and ``test`` are shares of all crystals for ``random``, ``composition``, ``chemical_system``,
``stoichiometry``, ``prototype`` and ``extrapolation``; for ``kfold`` and ``element``, whose test part is given,
``val`` is a share of the rest; ``column`` and ``file`` give all parts.
"""

WORDS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""What a column of parts may hold -> part; crystals without an entry are left out."""


def _with_validation(config: SplitConfig, rest: list[Group], test: list[Group], purpose: str) -> Split:
    _enough(rest, 1 + (config.val > 0), "training and validation beside the test part")
    ranked = _ranked(rest, config.seed, purpose)
    val, train = _take(ranked, config.val, sum(map(len, rest)), spare=1)
    return _finish(config, train, val, test)


def _finish(config: SplitConfig, *parts: list[Group]) -> Split:
    train, val, test = (tuple(sorted(name for group in part for name in group)) for part in parts)
    return Split(train, val, test, config.method, config.seed)


def _ranked(groups: list[Group], seed: int, purpose: str) -> list[Group]:
    def rank(group: Group) -> bytes:
        return hashlib.sha256(f"{seed}:{purpose}:{group[0]}".encode()).digest()

    return sorted(groups, key=rank)


def _take(groups: list[Group], share: float, number: int, spare: int) -> tuple[list[Group], list[Group]]:
    """Take groups with about ``share`` of ``number`` crystals; return them and at least ``spare`` others.

    What fits is taken in order. What then is missing is less than the smallest group left; that one is taken
    too if the share is closer with it, or if the part would be empty.
    """
    taken: list[Group] = []
    rest: list[Group] = []
    missing = max(1, round(share * number)) if share > 0 else 0
    for group in groups:
        fits = len(group) <= missing and len(groups) - len(taken) > spare
        (taken if fits else rest).append(group)
        missing -= len(group) if fits else 0
    smallest = min(rest, key=len)
    if share > 0 and len(rest) > spare and (2 * missing > len(smallest) or not taken):
        rest.remove(smallest)
        taken.append(smallest)
    return taken, rest


def _enough(groups: list[Group], needed: int, purpose: str) -> None:
    if len(groups) < needed:
        number = sum(map(len, groups))
        raise DataError(
            f"split: too few crystals for {purpose}: {number} crystals in {len(groups)} groups that stay "
            f"together, at least {needed} groups are needed; add crystals or ask for fewer parts"
        )


def _overlap(train: list[CrystalSummary], part: list[CrystalSummary]) -> dict[str, Any]:
    keys: dict[str, Callable[[CrystalSummary], str | None]] = {
        "formula": reduced_formula,
        "chemical_system": chemical_system,
        "stoichiometry": stoichiometry,
    }
    if all(crystal.prototype is not None for crystal in (*train, *part)):
        keys["prototype"] = lambda crystal: crystal.prototype
    shares = {}
    for name, key in keys.items():
        seen = {key(crystal) for crystal in train}
        shares[f"{name}_in_train"] = sum(key(crystal) in seen for crystal in part) / len(part)
    trained = {crystal.material_id for crystal in train}
    groups = [group for group in duplicate_groups([*train, *part]) if not trained.isdisjoint(group)]
    repeated = sum(name not in trained for group in groups for name in group)
    elements = [{element for c in side for element, _ in reduced_counts(c)} for side in (train, part)]
    return {
        **shares,
        "duplicate_in_train": repeated / len(part),
        "elements_not_in_train": sorted(elements[1] - elements[0]),
    }


def _some(names: Sequence[str], number: int = 3) -> str:
    more = f" and {len(names) - number} more" if len(names) > number else ""
    return ", ".join(repr(name) for name in names[:number]) + more
