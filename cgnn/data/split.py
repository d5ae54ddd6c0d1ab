"""Dividing crystals into training, validation and test parts, without leaks between them."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import reduce
from itertools import pairwise
from math import gcd
from pathlib import Path
from typing import Any

from cgnn.config import SplitConfig
from cgnn.errors import DataError, choose, unknown
from cgnn.files import write_json

PARTS = ("train", "val", "test")
SAME = 1e-3
"""Relative difference up to which volume and shells count as equal."""


@dataclass(frozen=True)
class CrystalSummary:
    """What a split needs to know of a crystal.

    Args:
        material_id: Opaque identifier, unique within a data set.
        composition: Element -> count in the cell.
        volume_per_atom: In Å³.
        shells: Positive invariants of the crystal (Å), such as the mean distance of nearest neighbours; up to
            rounding the same in every cell, orientation and order of the sites.
    """

    material_id: str
    composition: dict[str, int]
    volume_per_atom: float
    shells: tuple[float, ...]


@dataclass(frozen=True)
class Split:
    """The ids of each part, sorted, and how they were found.

    Args:
        train: Ids to learn from.
        val: Ids that choose the best epoch.
        test: Ids that are only evaluated at the end.
        method: The entry of `SPLITS` that made it.
        seed: The seed it was made with.
        left_out: Number of crystals in no part (only where the parts come from a file).
    """

    train: tuple[str, ...]
    val: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    method: str = ""
    seed: int = 0
    left_out: int = 0

    def save(self, path: str | Path) -> None:
        """Write the split as JSON, all or nothing; it can be the ``file`` of another run."""
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: str | Path) -> Split:
        """Read a split: JSON with lists of ids under ``train`` and, if wanted, ``val`` and ``test``.

        Raises:
            DataError: No such file, no JSON, an unknown key, an id twice, or nothing to train on.
        """
        content = _read(Path(path))
        parts = {part: _ids(content.pop(part, []), f"{path}: {part}") for part in PARTS}
        _check_once(parts, path)
        if not parts["train"]:
            raise DataError(f"{path}: expected ids under 'train', found none")
        method, seed, left_out = (content.pop(key, default) for key, default in _NOTES.items())
        if not isinstance(method, str) or not (_is_count(seed) and _is_count(left_out)):
            raise DataError(f"{path}: 'method' must be text, 'seed' and 'left_out' whole numbers from 0")
        return cls(**parts, method=method, seed=seed, left_out=left_out)


_NOTES: dict[str, Any] = {"method": "", "seed": 0, "left_out": 0}
_Group = tuple[str, ...]
"""Ids that stay on one side."""
_Splitter = Callable[[SplitConfig, Sequence[CrystalSummary]], Split]


def split(config: SplitConfig, crystals: Sequence[CrystalSummary]) -> Split:
    """Divide crystals as the settings say.

    The result depends on the settings and on the crystals, not on their order: ids are ranked by a hash of
    (seed, id). Shares are met as closely as whole groups allow, and every part asked for gets a crystal.

    Raises:
        ConfigError: No such method.
        DataError: No or too few crystals, an id twice, or an element, file or id that does not fit.
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
        of its crystals whose reduced formula, set of elements, stoichiometry or whole structure
        (``duplicate``) also occurs in training, and ``elements_not_in_train``.
    """
    by_id = {crystal.material_id: crystal for crystal in crystals}
    parts = {part: [by_id[name] for name in getattr(split, part)] for part in PARTS}
    counts = {part: len(members) for part, members in parts.items()}
    overlap = {part: _overlap(parts["train"], parts[part]) for part in PARTS[1:] if parts[part]}
    return {"counts": {**counts, "left_out": split.left_out}, **overlap}


def reduced_formula(crystal: CrystalSummary) -> str:
    """Return the formula with the smallest whole numbers, elements in alphabetical order (``Al1Ni3``)."""
    return "".join(f"{element}{count}" for element, count in _reduced(crystal))


def chemical_system(crystal: CrystalSummary) -> str:
    """Return the elements of a crystal in alphabetical order (``Al-Ni``)."""
    return "-".join(element for element, _ in _reduced(crystal))


def stoichiometry(crystal: CrystalSummary) -> str:
    """Return the reduced formula without names of elements (``1:3`` for every AB3)."""
    return ":".join(str(count) for count in sorted(count for _, count in _reduced(crystal)))


def duplicate_groups(crystals: Sequence[CrystalSummary]) -> list[_Group]:
    """Group the same crystal under several ids or in several cells.

    Two crystals of one reduced formula whose volume per atom and shells all agree within a relative `SAME`
    are never parted, nor are those linked through a third. A formula's crystals are sorted by one quantity
    after another and parted where it jumps, until no quantity parts any group: O(n log n) a pass.
    """
    by_formula: dict[tuple[str, int], list[CrystalSummary]] = defaultdict(list)
    for crystal in crystals:
        by_formula[reduced_formula(crystal), len(crystal.shells)].append(crystal)
    groups = [group for same_formula in by_formula.values() for group in _alike(same_formula)]
    return [tuple(sorted(crystal.material_id for crystal in group)) for group in groups]


def _alike(crystals: list[CrystalSummary]) -> list[list[CrystalSummary]]:
    groups, before = [crystals], 0
    while len(groups) > before:
        before = len(groups)
        for quantity in range(1 + len(crystals[0].shells)):
            groups = [piece for group in groups for piece in _part_at_jumps(group, quantity)]
    return groups


def _part_at_jumps(crystals: list[CrystalSummary], quantity: int) -> list[list[CrystalSummary]]:
    def value(crystal: CrystalSummary) -> float:
        return (crystal.volume_per_atom, *crystal.shells)[quantity]

    ordered = sorted(crystals, key=value)
    pieces = [[ordered[0]]]
    for lower, upper in pairwise(ordered):
        if value(upper) > value(lower) * (1 + SAME):
            pieces.append([])
        pieces[-1].append(upper)
    return pieces


def _groups_by(key: Callable[[CrystalSummary], str], crystals: Iterable[CrystalSummary]) -> list[_Group]:
    groups: dict[str, list[str]] = defaultdict(list)
    for crystal in crystals:
        groups[key(crystal)].append(crystal.material_id)
    return [tuple(sorted(group)) for group in groups.values()]


def _indivisible(config: SplitConfig, crystals: Sequence[CrystalSummary]) -> list[_Group]:
    if config.keep_duplicates_together:
        return duplicate_groups(crystals)
    return [(crystal.material_id,) for crystal in crystals]


def _by_share(config: SplitConfig, groups: list[_Group]) -> Split:
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


def _kfold(config: SplitConfig, crystals: Sequence[CrystalSummary]) -> Split:
    groups = _indivisible(config, crystals)
    _enough(groups, config.folds, f"{config.folds} folds")
    folds: list[list[_Group]] = [[] for _ in range(config.folds)]
    sizes = [0] * config.folds
    for group in sorted(_ranked(groups, config.seed, "folds"), key=len, reverse=True):
        smallest = sizes.index(min(sizes))
        folds[smallest].append(group)
        sizes[smallest] += len(group)
    rest = [group for fold in folds if fold is not folds[config.fold] for group in fold]
    return _with_validation(config, rest, folds[config.fold], f"validation of fold {config.fold}")


def _element(config: SplitConfig, crystals: Sequence[CrystalSummary]) -> Split:
    element = str(config.element)
    known = sorted({symbol for crystal in crystals for symbol, _ in _reduced(crystal)})
    if element not in known:
        raise DataError(f"split: no crystal contains it: {unknown(element, known, 'element')}")
    groups = _indivisible(config, crystals)
    having = {c.material_id for c in crystals if c.composition.get(element, 0)}
    test = [group for group in groups if group[0] in having]  # duplicates share their formula
    return _with_validation(config, [group for group in groups if group[0] not in having], test, "validation")


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
    "element": _element,
    "file": _from_file,
}
"""Ways of dividing crystals.

``val`` and ``test`` are shares of all crystals for ``random``, ``composition``, ``chemical_system`` and
``stoichiometry``; for ``kfold`` and ``element``, whose test part is given, ``val`` is a share of the rest.
"""


def _with_validation(config: SplitConfig, rest: list[_Group], test: list[_Group], purpose: str) -> Split:
    _enough(rest, 1 + (config.val > 0), "training and validation beside the test part")
    ranked = _ranked(rest, config.seed, purpose)
    val, train = _take(ranked, config.val, sum(map(len, rest)), spare=1)
    return _finish(config, train, val, test)


def _finish(config: SplitConfig, *parts: list[_Group]) -> Split:
    train, val, test = (tuple(sorted(name for group in part for name in group)) for part in parts)
    return Split(train, val, test, config.method, config.seed)


def _ranked(groups: list[_Group], seed: int, purpose: str) -> list[_Group]:
    def rank(group: _Group) -> bytes:
        return hashlib.sha256(f"{seed}:{purpose}:{group[0]}".encode()).digest()

    return sorted(groups, key=rank)


def _take(groups: list[_Group], share: float, number: int, spare: int) -> tuple[list[_Group], list[_Group]]:
    """Take groups with about ``share`` of ``number`` crystals; return them and at least ``spare`` others.

    What fits is taken in order. What then is missing is less than the smallest group left; that one is taken
    too if the share is closer with it, or if the part would be empty.
    """
    taken: list[_Group] = []
    rest: list[_Group] = []
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


def _enough(groups: list[_Group], needed: int, purpose: str) -> None:
    if len(groups) < needed:
        number = sum(map(len, groups))
        raise DataError(
            f"split: too few crystals for {purpose}: {number} crystals in {len(groups)} groups that stay "
            f"together, at least {needed} groups are needed; add crystals or ask for fewer parts"
        )


def _reduced(crystal: CrystalSummary) -> list[tuple[str, int]]:
    present = sorted((element, count) for element, count in crystal.composition.items() if count)
    divisor = reduce(gcd, (count for _, count in present), 0)
    return [(element, count // divisor) for element, count in present]


def _overlap(train: list[CrystalSummary], part: list[CrystalSummary]) -> dict[str, Any]:
    keys = {"formula": reduced_formula, "chemical_system": chemical_system, "stoichiometry": stoichiometry}
    shares = {}
    for name, key in keys.items():
        seen = {key(crystal) for crystal in train}
        shares[f"{name}_in_train"] = sum(key(crystal) in seen for crystal in part) / len(part)
    trained = {crystal.material_id for crystal in train}
    groups = [group for group in duplicate_groups([*train, *part]) if not trained.isdisjoint(group)]
    repeated = sum(name not in trained for group in groups for name in group)
    elements = [{element for c in side for element, _ in _reduced(c)} for side in (train, part)]
    return {
        **shares,
        "duplicate_in_train": repeated / len(part),
        "elements_not_in_train": sorted(elements[1] - elements[0]),
    }


def _read(path: Path) -> dict[str, Any]:
    import orjson

    try:
        content = orjson.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: could not be read: {error.strerror or error}") from None
    except orjson.JSONDecodeError as error:
        raise DataError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected lists of ids under 'train', 'val' and 'test'")
    known = [field.name for field in fields(Split)]
    for key in content:
        if key not in known:
            raise DataError(f"{path}: {unknown(key, known, 'key')}")
    return content


def _ids(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
        raise DataError(f"{where}: expected a list of ids (texts)")
    return tuple(sorted(value))


def _check_once(parts: dict[str, tuple[str, ...]], path: str | Path) -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for part, names in parts.items():
        for name in names:
            places[name].append(part)
    twice = [f"{name!r} ({' and '.join(where)})" for name, where in places.items() if len(where) > 1]
    if twice:
        raise DataError(f"{path}: {len(twice)} ids stand there twice, such as {twice[0]}")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _some(names: Sequence[str], number: int = 3) -> str:
    more = f" and {len(names) - number} more" if len(names) > number else ""
    return ", ".join(repr(name) for name in names[:number]) + more
