"""Who saw what: crystals that carry their own id in their lattice, so that a mix-up of indices can't hide."""

import csv
import json

import numpy as np
import orjson
import pytest
import torch

from cgnn.config import build
from cgnn.model.members import Combined
from cgnn.train import loop
from cgnn.train.ensembles import batched
from cgnn.train.pu import pu_fit
from cgnn.train.pu.plan import BAG_FILE, Plan

NUMBER = 40


def carried(batch):
    """Return the numbers that crystals carry: cubic cells of 3 + n / 100 Å."""
    return [round((float(cell[0, 0]) - 3) * 100) for cell in batch.lattice.reshape(-1, 3, 3)]


@pytest.fixture(scope="module")
def carriers(tmp_path_factory):
    """Settings of a run on crystals in an order unlike that of their ids; every seventh has no label."""
    folder = tmp_path_factory.mktemp("carriers")
    documents = []
    for n in np.random.default_rng(3).permutation(NUMBER).tolist():
        a = 3 + n / 100
        lattice = {"matrix": [[a, 0, 0], [0, a, 0], [0, 0, a]]}
        sites = [
            {"species": [{"element": element, "occu": 1}], "abc": place}
            for element, place in (("Cs", [0, 0, 0]), ("Cl", [0.5, 0.5, 0.5]))
        ]
        label = None if n % 7 == 6 else n % 3 > 0
        documents.append(
            {"material_id": f"c{n:02d}", "structure": {"lattice": lattice, "sites": sites}, "theoretical": label}
        )
    (folder / "export.json").write_text(json.dumps(documents))
    return build(
        {
            "targets": [{"name": "made", "task": "binary"}],
            "data": {"path": str(folder / "export.json"), "cache": str(folder)},
            "graph": {"cutoff": 6.0},
            "model": {"width": 4, "depth": 1, "gaussians": 6, "head_width": 4, "elements": ["one_hot"]},
            "train": {"epochs": 1, "batch_size": 8, "device": "cpu"},
            "pu": {"bags": 4, "val": 0.2, "ratio": 0.8, "together": 3},
        }
    )


@pytest.fixture
def watched(monkeypatch):
    """Note what each bag is trained and validated on, and whom it scores; a score is the number that is carried."""
    seen = {"trained": {}, "validated": {}, "scored": []}

    def note(kind, bag, batch):
        seen[kind].setdefault(bag, set()).update(carried(batch))

    real_step, real_validate = loop._Session._step, loop._Session._validate

    def step(self, indices):
        note("trained", self.method.number, self.dataset.batch(indices))
        real_step(self, indices)

    def validate(self):
        note("validated", self.method.number, self.dataset.batch(self.parts["val"]))
        return real_validate(self)

    def losses(self, indices):
        """Of bags fitted at once: what counts for each."""
        numbers = carried(self.group.dataset.batch(indices))
        for row, member in enumerate(self.group.members):
            counting = self.counts[row, torch.from_numpy(indices)].tolist()
            found = {n for n, counts in zip(numbers, counting, strict=True) if counts}
            seen["trained"].setdefault(member.number, set()).update(found)
        return real_losses(self, indices)

    def validate_all(self):
        for member in self.group.members:
            indices = self.group.parts["val"][self._own_rows(member)]
            note("validated", member.number, self.group.dataset.batch(indices))
        return real_validate_all(self)

    real_losses, real_validate_all = batched._Session._losses, batched._Session._validate

    def combined(networks, dataset, indices):
        numbers = carried(dataset.batch(indices))
        seen["scored"].append(set(numbers))
        return Combined({"made": torch.tensor(numbers).double() / 100}, {})

    monkeypatch.setattr(loop._Session, "_step", step)
    monkeypatch.setattr(loop._Session, "_validate", validate)
    monkeypatch.setattr(batched._Session, "_losses", losses)
    monkeypatch.setattr(batched._Session, "_validate", validate_all)
    monkeypatch.setattr("cgnn.train.pu.bag.combined_part", combined)
    return seen


def numbers(ids):
    return {int(name[1:]) for name in ids}


@pytest.mark.parametrize("way", ["serial", "batched"])
@pytest.mark.filterwarnings("ignore:.*were drawn by all.*:UserWarning")
def test_nobody_is_scored_by_a_bag_that_saw_it(carriers, watched, tmp_path, way):
    run = pu_fit(carriers, tmp_path / "run", side_by_side=way)
    positives = {n for n in range(NUMBER) if n % 3 == 0 and n % 7 != 6}
    unlabelled = {n for n in range(NUMBER) if n % 3 and n % 7 != 6}
    plan = Plan.load(tmp_path / "run")
    heldout = numbers(plan.heldout)
    assert numbers(plan.positives) | heldout == positives
    assert numbers(plan.unlabelled) == unlabelled
    votes = dict.fromkeys(unlabelled, 0)
    for bag in range(4):
        kept = orjson.loads((tmp_path / "run" / "bags" / str(bag) / BAG_FILE).read_bytes())
        trained, validated, scored = (watched[kind][bag] for kind in ("trained", "validated", "scored"))
        assert not trained & validated
        assert not scored & (trained | validated)
        assert trained | validated == numbers(plan.positives) | numbers(kept["drawn"])
        assert validated == numbers(kept["val"])
        assert scored == heldout | unlabelled - numbers(kept["drawn"])
        for n in scored & unlabelled:
            votes[n] += 1
    # each score stands in the row of the crystal that carries it
    rows = list(csv.DictReader((tmp_path / "run" / "scores.csv").read_text().splitlines()))
    assert [row["material_id"] for row in rows] == [f"c{n:02d}" for n in sorted(unlabelled)]
    for row in rows:
        n = int(row["material_id"][1:])
        assert int(row["votes"]) == votes[n]
        assert row["clscore"] == ("" if not votes[n] else f"{n / 100:.7g}")
        assert row["clscore_std"] == ("" if votes[n] < 2 else "0")
    rows = list(csv.DictReader((tmp_path / "run" / "heldout.csv").read_text().splitlines()))
    assert {(row["material_id"], float(row["clscore"]), row["votes"]) for row in rows} == {
        (f"c{n:02d}", n / 100, "4") for n in heldout
    }
    assert numbers(aside.material_id for aside in run.set_aside) == {n for n in range(NUMBER) if n % 7 == 6}


@pytest.mark.filterwarnings("ignore:.*were drawn by all.*:UserWarning")
def test_spies_stay_within_the_bag(carriers, watched, tmp_path, monkeypatch):
    """Both steps see crystals of the bag alone, the second a part of them."""
    monkeypatch.setattr(
        "cgnn.train.pu.ways.combined_part",
        lambda networks, dataset, indices: Combined(
            {"made": torch.linspace(0.0, 0.9 if len(indices) > 2 else 1.0, len(indices)).double()}, {}
        ),
    )
    config = build({**carriers.model_dump(mode="json"), "pu": {**carriers.pu.model_dump(mode="json"), "way": "spies"}})
    pu_fit(config, tmp_path / "run", side_by_side="serial")
    for bag in range(4):
        kept = orjson.loads((tmp_path / "run" / "bags" / str(bag) / BAG_FILE).read_bytes())
        used = watched["trained"][bag] | watched["validated"][bag]
        assert used == numbers(Plan.load(tmp_path / "run").positives) | numbers(kept["drawn"])
        assert not watched["scored"][bag] & used
