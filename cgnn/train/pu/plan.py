"""Which crystals each bag sees: pure functions of the seed, the bag and the crystals, kept in files as ids."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cgnn.config import PUConfig, SplitConfig
from cgnn.data.split import split
from cgnn.data.summary import CrystalSummary, duplicate_groups
from cgnn.errors import CheckpointError, DataError
from cgnn.files import write_json

Ids = tuple[str, ...]
PLAN_FILE = "plan.json"
BAG_FILE = "bag.json"
_DRAW, _VALIDATION = 11, 12
"""Purposes of random numbers, so that no two of them are the same."""


@dataclass(frozen=True)
class Draw:
    """What one bag sees.

    Args:
        bag: Its number, from 0.
        drawn: Unlabelled crystals that it takes for negatives, in training or validation.
        train: Crystals that it is trained on, positive and drawn.
        val: Crystals that choose its epoch, positive and drawn.
    """

    bag: int
    drawn: Ids
    train: Ids
    val: Ids

    def save(self, folder: Path) -> None:
        """Write the bag's file into its folder; its training crystals are all others that it may see."""
        write_json(folder / BAG_FILE, {"bag": self.bag, "drawn": self.drawn, "val": self.val})


@dataclass(frozen=True)
class Plan:
    """What is the same for all bags; every id stands in at most one of the four lists, in order.

    Args:
        positives: Positives that bags are trained on.
        heldout: Positives that no bag sees.
        unlabelled: Crystals that may be drawn, and are scored by the bags that did not draw them.
        unseen: Unlabelled crystals that are never drawn (``pu.element``), and are scored by all bags.
        set_aside: Unlabelled crystals that do not count as such: the same crystal as a positive.
        later: Those of the unlabelled crystals that became known as positives later.
        size: Crystals drawn for each bag.
        val: Share of each bag that chooses its epoch.
        seed: Seed of the draws.
        groups: Crystal -> a name that it shares with the same crystal under other ids; not kept in files.
    """

    positives: Ids
    heldout: Ids
    unlabelled: Ids
    unseen: Ids
    set_aside: Ids
    later: Ids
    size: int
    val: float
    seed: int
    groups: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def make(
        cls, pu: PUConfig, crystals: Sequence[CrystalSummary], positives: Collection[str], later: Collection[str] = ()
    ) -> Plan:
        """Plan the bags.

        Args:
            pu: Hold-out, ratio and seed.
            crystals: All with a label.
            positives: Ids of the positive ones.
            later: Ids of unlabelled ones that became known as positives later.

        Raises:
            DataError: There are too few positives, or too few unlabelled crystals for the draw.
        """
        together = duplicate_groups(crystals)
        groups = {name: group[0] for group in together for name in group}
        positive = frozenset(positives)
        known = {groups[name] for name in positive}
        aside = frozenset(
            crystal.material_id
            for crystal in crystals
            if pu.duplicates == "set_aside"
            and crystal.material_id not in positive
            and groups[crystal.material_id] in known
        )
        heldout = _heldout(pu, [c for c in crystals if c.material_id in positive], len(known))
        rest = [c for c in crystals if c.material_id not in positive and c.material_id not in aside]
        unseen = {c.material_id for c in rest if pu.element and c.composition.get(pu.element, 0)}
        plan = cls(
            positives=tuple(sorted(positive - heldout)),
            heldout=tuple(sorted(heldout)),
            unlabelled=tuple(sorted(c.material_id for c in rest if c.material_id not in unseen)),
            unseen=tuple(sorted(unseen)),
            set_aside=tuple(sorted(aside)),
            later=tuple(sorted(frozenset(later) - aside)),
            size=max(round(pu.ratio * (len(positive) - len(heldout))), 2),
            val=pu.val,
            seed=pu.seed,
            groups=groups,
        )
        _check_draw(plan, pu)
        return plan

    def draw(self, bag: int) -> Draw:
        """Return what a bag sees: a function of the plan and the bag's number alone.

        Raises:
            DataError: The positives can't be divided into training and validation.
        """
        random = np.random.default_rng([self.seed, _DRAW, bag])
        chosen = np.sort(random.choice(len(self.unlabelled), self.size, replace=False))
        drawn = tuple(self.unlabelled[place] for place in chosen.tolist())
        val = self._validation(bag, drawn)
        train = tuple(name for name in (*self.positives, *drawn) if name not in val)
        return Draw(bag, drawn, train, tuple(sorted(val)))

    def outside(self, draw: Draw) -> Ids:
        """Return what a bag scores: unlabelled crystals that it did not draw, and the held-out positives."""
        seen = frozenset(draw.drawn)
        return tuple(n for n in (*self.unlabelled, *self.unseen, *self.heldout) if n not in seen)

    @property
    def scored(self) -> Ids:
        """Unlabelled crystals that get a score."""
        return tuple(sorted((*self.unlabelled, *self.unseen)))

    @property
    def number(self) -> int:
        """Crystals that are used in any way."""
        return len(self.positives) + len(self.heldout) + len(self.unlabelled) + len(self.unseen)

    def to_dict(self) -> dict[str, Any]:
        """Return what stands in the file."""
        return {name: value for name, value in vars(self).items() if name != "groups"}

    def save(self, folder: Path) -> None:
        """Write the plan's file."""
        write_json(folder / PLAN_FILE, self.to_dict())

    @classmethod
    def load(cls, folder: Path) -> Plan:
        """Read the plan of a folder, without the groups: what was drawn can be told, nothing new be drawn.

        Raises:
            CheckpointError: There is none, or it can't be read.
        """
        path = folder / PLAN_FILE
        try:
            stored = json.loads(path.read_text())
            values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in stored.items()}
            return cls(**values)
        except (OSError, ValueError, TypeError) as error:
            raise CheckpointError(f"{path}: no plan of bags that can be read: {error}") from None

    def _validation(self, bag: int, drawn: Ids) -> frozenset[str]:
        """Return the crystals of a bag that choose its epoch: of both classes the share, no crystal on both sides."""
        members: dict[str, list[list[str]]] = {}
        for side, names in enumerate((self.positives, drawn)):
            for name in names:
                members.setdefault(self.groups[name], [[], []])[side].append(name)
        order = np.random.default_rng([self.seed, _VALIDATION, bag]).permutation(len(members))
        ranked = sorted(members)
        groups = [members[ranked[place]] for place in order.tolist()]
        missing = [max(1, round(self.val * len(names))) for names in (self.positives, drawn)]
        chosen: list[str] = []
        for group in groups:
            if all(len(names) <= left for names, left in zip(group, missing, strict=True)):
                chosen += [*group[0], *group[1]]
                missing = [left - len(names) for names, left in zip(group, missing, strict=True)]
            if not any(missing):
                break
        val = frozenset(chosen)
        for what, names in (("positives", self.positives), ("drawn unlabelled crystals", drawn)):
            if not 0 < sum(name in val for name in names) < len(names):
                raise DataError(
                    f"bag {bag}: its {len(names)} {what} are too few, or too many of them the same crystal, to train "
                    f"and to validate on; add crystals, or change pu.val ({self.val:g}) or pu.ratio"
                )
        return val


def _heldout(pu: PUConfig, positives: Sequence[CrystalSummary], different: int) -> frozenset[str]:
    if pu.element is not None:
        heldout = frozenset(c.material_id for c in positives if c.composition.get(pu.element, 0))
        what, enough = f"those with {pu.element} (pu.element)", bool(heldout) and len(positives) - len(heldout) >= 2
    else:
        what, enough = f"{pu.holdout:g} of them (pu.holdout)", different >= 3
    if not enough:
        raise DataError(
            f"{len(positives)} positives ({different} different crystals) are too few: the hold-out takes {what}, and "
            "a bag needs at least one to train and one to validate on; add positives or change the hold-out"
        )
    if pu.element is not None:
        return heldout
    by_share = SplitConfig(val=0.0, test=pu.holdout, seed=pu.seed)
    parts = split(by_share, positives)
    if len(parts.train) < 2:
        raise DataError(
            f"{len(positives)} positives are too few: the hold-out of {pu.holdout:g} (pu.holdout) leaves "
            f"{len(parts.train)}, and a bag needs at least one to train and one to validate on; lower it"
        )
    return frozenset(parts.test)


def _check_draw(plan: Plan, pu: PUConfig) -> None:
    have = len(plan.unlabelled)
    if plan.size >= have:
        fitting = int(100 * (have - 1) / len(plan.positives)) / 100
        advice = f"; set pu.ratio to {fitting:g} or less" if fitting * len(plan.positives) >= 2 else ""
        raise DataError(
            f"{have} unlabelled crystals are too few: a bag draws {plan.size} of them ({pu.ratio:g} for each of "
            f"{len(plan.positives)} training positives) and one at least must stay outside{advice}"
        )
