"""The bags of a run: made from their plan in groups, and added up as they are done."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from cgnn.config import Config, PUConfig
from cgnn.data.dataset import CrystalDataset
from cgnn.files import write_bytes
from cgnn.train.ensembles.side_by_side import Group
from cgnn.train.loop import Indices
from cgnn.train.pu.bag import Bag, read_votes
from cgnn.train.pu.labels import Opening
from cgnn.train.pu.plan import Draw, Plan
from cgnn.train.pu.scores import PROGRESS_FILE, Scores, Tally, is_good_enough, standing
from cgnn.train.pu.ways import learn
from cgnn.train.run import method_of

BAGS = "bags"
DESCRIBED_FILE = "descriptors.safetensors"


class Bags:
    """The bags of a plan.

    Args:
        config: All settings.
        pu: Those of the bags.
        dataset: The crystals.
        plan: Which of them each bag sees.
        folder: Run folder.
        is_shared: Whether bags share their batches.
    """

    def __init__(
        self, config: Config, pu: PUConfig, dataset: CrystalDataset, plan: Plan, folder: Path, is_shared: bool
    ) -> None:
        self.config, self.pu, self.dataset, self.plan = config, pu, dataset, plan
        self.folder, self.is_shared = folder, is_shared
        self.draws: dict[int, Draw] = {}
        self.made: dict[int, Bag] = {}
        self._places = {name: index for index, name in enumerate(dataset.ids)}

    def groups(self) -> Iterator[Group]:
        """Yield the bags in groups that are fitted side by side."""
        size = self.pu.together if self.is_shared else self.pu.bags
        for number in range(0, self.pu.bags, size):
            draws = [self.plan.draw(bag) for bag in range(number, min(number + size, self.pu.bags))]
            yield self._group(draws, f"together-{number // size}" if self.is_shared else "")

    def _group(self, draws: list[Draw], shared: str) -> Group:
        for draw in draws:
            draw.save(self.place(draw.bag))
        common = {part: self.indices({n for d in draws for n in getattr(d, part)}) for part in ("train", "val")}
        return Group(
            self._of_bags(),
            self.dataset,
            common,
            self.folder / BAGS,
            tuple(self._bag(draw, common["train"]) for draw in draws),
            work=learn,
            reopen=Opening(self.pu, self.folder / DESCRIBED_FILE),
            retries=self.pu.retries,
            shared=shared,
        )

    def _bag(self, draw: Draw, common: Indices) -> Bag:
        parts = {"train": self.indices(draw.train), "val": self.indices(draw.val)}
        counts = None
        if self.is_shared:
            counts = np.zeros(len(self.dataset), np.float32)
            counts[parts["train"]] = 1
            parts["train"] = common
        way = method_of(self.config, self.place(draw.bag), resume=True)
        outside = self.indices(self.plan.outside(draw))
        bag = Bag(draw.bag, self.config.train.seed, parts, outside, self.pu, way, counts)
        self.draws[draw.bag], self.made[draw.bag] = draw, bag
        return bag

    def _of_bags(self) -> Config:
        """Return the settings of each bag: one thread where several share the processors."""
        train = self.config.train
        if not self.is_shared and not train.threads:
            train = train.model_copy(update={"threads": 1})
        return self.config.model_copy(update={"train": train, "pu": None})

    def place(self, bag: int) -> Path:
        """Return the folder of a bag."""
        return self.folder / BAGS / str(bag)

    def indices(self, ids: Iterable[str]) -> Indices:
        """Return where crystals stand in the data set, in its order."""
        return np.array(sorted(self._places[name] for name in ids), dtype=np.int64)


class Progress:
    """Adds up the votes of the bags in their order, whatever the order in which they are done.

    Args:
        bags: The bags.
        tell: Called with each row.
    """

    def __init__(self, bags: Bags, tell: Callable[[dict[str, Any]], None] | None) -> None:
        self._bags, self._tell = bags, tell
        self._done: set[int] = set()
        self._scored = bags.indices(bags.plan.scored)
        self._heldout = bags.indices(bags.plan.heldout)
        self.tally = Tally(len(bags.dataset))
        self.rows: list[dict[str, Any]] = []
        self.is_enough = False

    def note(self, bag: int) -> bool:
        """Note that a bag is done; tell whether those before it and it are enough."""
        self._done.add(bag)
        for number in count(self.tally.bags):
            if self.is_enough or number not in self._done:
                return self.is_enough
            self._add(number)
        return self.is_enough

    def scores(self) -> tuple[Scores, Scores]:
        """Return the scores of the unlabelled crystals and those of the held-out positives."""
        ids = self._bags.dataset.ids
        return self.tally.scores(self._scored, ids), self.tally.scores(self._heldout, ids)

    def _add(self, number: int) -> None:
        bags = self._bags
        bag = bags.made[number]
        self.tally.add(bag.outside, read_votes(bags.dataset, bags.place(number), bag))
        row = standing(self.tally, *self.scores())
        self.rows.append(row)
        self.is_enough = is_good_enough(row, bags.pu.stop_when)
        write_bytes(bags.folder / PROGRESS_FILE, b"".join(orjson.dumps(r) + b"\n" for r in self.rows))
        if self._tell:
            self._tell(row)
