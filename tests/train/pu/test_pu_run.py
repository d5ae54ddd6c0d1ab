"""Runs of bags: the best epoch votes, and the same bits however they are fitted and whatever stopped them."""

import csv
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import orjson
import pytest

from cgnn.config import build
from cgnn.errors import CheckpointError, ConfigError, WorkerError
from cgnn.strict import dump
from cgnn.train import loop, train
from cgnn.train.checkpoint import MODEL_FILE, load_model, read_tensors
from cgnn.train.ensembles import batched
from cgnn.train.ensembles.batched import fit_batched
from cgnn.train.ensembles.side_by_side import fit_alone, one_by_one
from cgnn.train.pu import PU_WAYS, PURun, pu_fit
from cgnn.train.pu.bag import VOTES_FILE
from cgnn.train.pu.group import Bags
from cgnn.train.pu.labels import Opening
from cgnn.train.pu.plan import Plan
from cgnn.train.run import predict_part

ROOT = Path(__file__).parents[3]
COMMON = (f"best/{MODEL_FILE}", "scores.csv", "heldout.csv", "progress.jsonl", "plan.json", "duplicates.csv")
QUIET = "ignore:.*were drawn by all.*:UserWarning"
pytestmark = pytest.mark.filterwarnings(QUIET)


class Killed(BaseException):
    """Stands for kill -9: nothing is caught, nothing is written after it."""


def assert_same(folder, expected):
    for name in COMMON:
        assert (folder / name).read_bytes() == (expected / name).read_bytes(), name


def opened(folder):
    config = PURun.load(folder).config
    return config, Opening(config.pu)(config)


def test_files(pu_run, pu_settings):
    run = PURun.load(pu_run)
    assert run.config.pu == build(pu_settings).pu
    assert {entry.name for entry in pu_run.iterdir()} == {
        "bags", "best", "config.yaml", "duplicates.csv", "heldout.csv", "plan.json", "progress.jsonl", "pu.json",
        "scores.csv", "set_aside.csv",
    }  # fmt: skip
    assert {e.name for e in (pu_run / "bags" / "0").iterdir()} == {
        "bag.json",
        "best",
        "history.jsonl",
        "last",
        VOTES_FILE,
    }
    assert list(run.scores.ids) == sorted(run.plan.unlabelled)
    assert list(run.heldout.ids) == sorted(run.plan.heldout)
    assert run.heldout.votes.tolist() == [3] * len(run.heldout)
    assert [row["bags"] for row in run.progress] == [1, 2, 3]
    stored = load_model(run.model_file)
    assert len(stored.members) == 3
    assert stored.info.config == run.config
    assert stored.info.calibration == {}


def test_scores_are_out_of_bag_means_of_the_best_epochs(pu_settings, tmp_path):
    """With a rate at which the last epoch is not the best: of every bag the best one votes."""
    config = build(
        pu_settings, ["train.learning_rate=0.3", "train.schedule=constant", "train.epochs=6", "train.ema=0.0"]
    )
    pu_fit(config, tmp_path / "run", side_by_side="serial")
    run, (_, dataset) = PURun.load(tmp_path / "run"), opened(tmp_path / "run")
    places = {name: index for index, name in enumerate(dataset.ids)}
    votes = {name: [] for name in (*run.plan.scored, *run.plan.heldout)}
    is_last = []
    for bag in range(3):
        folder = tmp_path / "run" / "bags" / str(bag)
        rows = [orjson.loads(line) for line in (folder / "history.jsonl").read_bytes().splitlines()]
        best = min(rows, key=lambda row: row["val_score"])
        stored = load_model(folder / "best" / MODEL_FILE)
        assert stored.info.summary["epoch"] == best["epoch"]
        is_last.append(best["epoch"] == rows[-1]["epoch"])
        names = run.plan.outside(Plan.make(run.config.pu, dataset.summaries(), _positives(dataset)).draw(bag))
        indices = np.array([places[name] for name in names])
        found = predict_part(stored.members, dataset, indices)["synthesizable"]
        for name, probability in zip(names, found, strict=True):
            votes[name].append(probability)
    assert not all(is_last)
    for table in (run.scores, run.heldout):
        for name, score, spread, number in zip(table.ids, table.clscore, table.clscore_std, table.votes, strict=True):
            assert number == len(votes[name])
            if number:
                assert score == pytest.approx(np.mean(votes[name]), abs=2e-6)  # float32 networks, seven digits
            if number > 1:
                assert spread == pytest.approx(np.std(votes[name], ddof=1), abs=5e-6)


def _positives(dataset):
    (target,) = dataset.targets
    return [name for name, label in zip(dataset.ids, dataset.label(target), strict=True) if label == 1]


def test_progress_is_that_of_the_bags_so_far(pu_run, pu_settings, tmp_path):
    """Two bags alone leave what three left after two; a third one can be added."""
    pu_fit(build(pu_settings, ["pu.bags=2"]), tmp_path / "run", side_by_side="serial")
    rows = (pu_run / "progress.jsonl").read_bytes().splitlines()
    assert (tmp_path / "run" / "progress.jsonl").read_bytes().splitlines() == rows[:2]
    pu_fit(build(pu_settings), tmp_path / "run", resume=True)
    assert_same(tmp_path / "run", pu_run)


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_do_not_matter(pu_settings, pu_run, tmp_path, workers):
    rows = []
    report = lambda bag: lambda row: rows.append((bag, row["epoch"]))  # noqa: E731
    pu_fit(build(pu_settings), tmp_path / "run", side_by_side="processes", workers=workers, report=report)
    assert_same(tmp_path / "run", pu_run)
    assert {bag for bag, _ in rows} == {0, 1, 2}


SESSIONS = {"serial": loop._Session, "batched": batched._Session}


def kill_after(patch, session, step):
    real = session._step
    count = 0

    def stepped(self, indices):
        nonlocal count
        if count == step:
            raise Killed
        count += 1
        real(self, indices)

    patch.setattr(session, "_step", stepped)


@pytest.mark.parametrize(("way", "steps"), [("serial", (0, 3, 17)), ("batched", (3, 25))])
def test_killed_and_resumed(pu_settings, pu_run, tmp_path, monkeypatch, way, steps):
    """Killed before the first state, in mid-epoch, in a later bag: the same bits as unbroken."""
    config, unbroken = build(pu_settings), pu_run
    if way == "batched":
        unbroken = tmp_path / "unbroken"
        pu_fit(config, unbroken, side_by_side=way)
    for step in steps:
        folder = tmp_path / f"run-{step}"
        with monkeypatch.context() as patch:
            kill_after(patch, SESSIONS[way], step)
            with pytest.raises(Killed):
                pu_fit(config, folder, side_by_side=way)
        assert not (folder / "scores.csv").exists()
        pu_fit(config, folder, resume=True, side_by_side=way)
        assert_same(folder, unbroken)


@pytest.mark.parametrize("way", ["nnpu", "spies"])
def test_other_ways_resume_too(pu_settings, tmp_path, monkeypatch, way):
    config = build(pu_settings, [f"pu.way={way}", "pu.prior=0.3", "pu.bags=2", "pu.spy_recall=0.5"])
    pu_fit(config, tmp_path / "unbroken", side_by_side="serial")
    with monkeypatch.context() as patch:
        kill_after(patch, loop._Session, 14)
        with pytest.raises(Killed):
            pu_fit(config, tmp_path / "run", side_by_side="serial")
    pu_fit(config, tmp_path / "run", resume=True, side_by_side="processes", workers=1)
    assert_same(tmp_path / "run", tmp_path / "unbroken")


def test_a_finished_run_is_left_as_it_is(pu_settings, pu_run, tmp_path, monkeypatch):
    shutil.copytree(pu_run, tmp_path / "run")
    for way in ("serial", "processes"):  # the same bits, so one can go on with what the other began
        with monkeypatch.context() as patch:
            kill_after(patch, loop._Session, 0)
            pu_fit(build(pu_settings), tmp_path / "run", resume=True, side_by_side=way)
        assert_same(tmp_path / "run", pu_run)


def test_votes_that_are_lost_or_of_other_crystals_are_made_again(pu_settings, pu_run, tmp_path):
    shutil.copytree(pu_run, tmp_path / "run")
    (tmp_path / "run" / "bags" / "1" / VOTES_FILE).unlink()
    shutil.copy(pu_run / "bags" / "0" / VOTES_FILE, tmp_path / "run" / "bags" / "2" / VOTES_FILE)
    pu_fit(build(pu_settings), tmp_path / "run", resume=True, side_by_side="serial")
    assert_same(tmp_path / "run", pu_run)


def test_a_bag_whose_process_died_is_redone(pu_settings, tmp_path):
    """Once, as pu.retries says; the second death ends the run, which can be resumed."""
    config = build(pu_settings, ["train.epochs=6", "train.patience=null", "pu.bags=2"])
    killed = set()

    def kill(times):
        def told(row):
            for child in multiprocessing.active_children():
                if len(killed) < times and child.pid not in killed:
                    killed.add(child.pid)
                    child.kill()

        return lambda bag: told

    again = r"member 0: its process ended with exit code -9; it is taken up again"
    with pytest.warns(UserWarning, match=again):
        pu_fit(config, tmp_path / "once", side_by_side="processes", workers=1, report=kill(1))
    killed.clear()
    with pytest.warns(UserWarning, match=again), pytest.raises(WorkerError, match="exit code -9; --resume goes on"):
        pu_fit(config, tmp_path / "twice", side_by_side="processes", workers=1, report=kill(2))
    pu_fit(config, tmp_path / "twice", resume=True, side_by_side="serial")
    assert_same(tmp_path / "twice", tmp_path / "once")


def test_batched_bags_learn_what_they_learn_alone(pu_settings, tmp_path):
    """On the same shared batches, in double precision: scores of epochs to 1e-6, the best networks' outputs to 1e-6."""
    settings = ["train.precision=64-true", "train.learning_rate=0.01", "pu.together=3"]
    config = build(pu_settings, settings)
    dataset = Opening(config.pu)(config)
    plan = Plan.make(config.pu, dataset.summaries(), _positives(dataset))
    (group,) = Bags(config, config.pu, dataset, plan, tmp_path / "plan", is_shared=True).groups()
    for function in (one_by_one, fit_batched):
        function(replace(group, folder=tmp_path / function.__name__, work=fit_alone))
    for bag in group.members:
        assert len(bag.parts["train"]) > bag.counts.sum() > 0
        places = [tmp_path / function.__name__ / str(bag.number) for function in (one_by_one, fit_batched)]
        histories = [[orjson.loads(line) for line in (p / "history.jsonl").read_bytes().splitlines()] for p in places]
        for alone, together in zip(*histories, strict=True):
            assert {k: v for k, v in together.items() if k != "seconds"} == pytest.approx(
                {k: v for k, v in alone.items() if k != "seconds"}, rel=1e-6
            )
        alone, together = (
            predict_part(load_model(p / "best" / MODEL_FILE).members, dataset, bag.outside)["synthesizable"]
            for p in places
        )
        np.testing.assert_allclose(together, alone, rtol=1e-6)


def test_stopping_early(pu_settings, tmp_path):
    """At the first number of bags that is enough, whoever fits them; bags beyond it do not count."""
    config = build(pu_settings, ["pu.bags=12", "train.epochs=1"])
    whole = pu_fit(config, tmp_path / "whole", side_by_side="serial")
    decided = [row for row in whole.progress if not row["undecided"]]
    assert len(decided) > 3
    stop_when = decided[1]["score_error"]
    enough = next(row["bags"] for row in decided if row["score_error"] <= stop_when)
    assert enough < 12
    early = build(pu_settings, ["pu.bags=12", "train.epochs=1", f"pu.stop_when={stop_when!r}"])
    run = pu_fit(early, tmp_path / "early", side_by_side="processes", workers=2)
    assert run.progress == whole.progress[:enough]
    assert len(load_model(run.model_file).members) == enough
    again = pu_fit(early, tmp_path / "early", resume=True, side_by_side="serial")
    assert again.progress == run.progress
    shorter = pu_fit(
        build(pu_settings, [f"pu.bags={enough}", "train.epochs=1"]), tmp_path / "exact", side_by_side="serial"
    )
    np.testing.assert_array_equal(shorter.scores.clscore, run.scores.clscore)


def test_duplicates_are_listed_and_set_aside(pu_settings, pu_documents, tmp_path):
    """A positive again under another id, in a doubled cell, and told to be theoretical."""
    from pymatgen.core import Structure

    first = next(d for d in pu_documents if not d["theoretical"])
    doubled = Structure.from_dict(first["structure"]).make_supercell([1, 1, 2]).as_dict()
    twin = {**first, "material_id": "twin", "theoretical": True, "structure": doubled}
    (tmp_path / "export.json").write_bytes(orjson.dumps([*pu_documents, twin], option=orjson.OPT_SERIALIZE_NUMPY))
    overrides = [f"data.path={tmp_path / 'export.json'}", "pu.bags=2", "train.epochs=1"]
    with pytest.warns(
        UserWarning, match=r"\d+ unlabelled crystals are the same as a positive .*pu.duplicates: set_aside"
    ):
        kept = pu_fit(build(pu_settings, overrides), tmp_path / "kept", side_by_side="serial")
    with pytest.warns(UserWarning, match="they are set aside"):
        run = pu_fit(
            build(pu_settings, [*overrides, "pu.duplicates=set_aside"]), tmp_path / "run", side_by_side="serial"
        )
    rows = {
        row["material_id"]: row
        for row in csv.DictReader((tmp_path / "run" / "duplicates.csv").read_text().splitlines())
    }
    assert (rows["twin"]["kind"], rows["twin"]["positive"]) == ("same_crystal", first["material_id"])
    assert "twin" in kept.scores.ids
    assert "twin" not in run.scores.ids
    assert "twin" in run.plan.set_aside


def test_equal_scores_are_told(pu_settings, pu_documents, tmp_path):
    """Of three positives, trees can learn nothing: their leaves hold more crystals."""
    three = [d["material_id"] for d in pu_documents if not d["theoretical"]][:3]
    some = [{**d, "theoretical": d["material_id"] not in three} for d in pu_documents]
    (tmp_path / "export.json").write_bytes(orjson.dumps(some))
    changes = [f"data.path={tmp_path / 'export.json'}", "model.head=trees", "model.depth=0", "pu.bags=2"]
    changes += ["model.descriptors=[volume]", "model.dropout=0", "model.elements=[properties]"]
    with pytest.warns(UserWarning, match=r"all crystals score 0\.5: nothing was learned .* 2 training positives"):
        run = pu_fit(build(pu_settings, changes), tmp_path / "run", side_by_side="serial")
    assert np.ptp(run.scores.clscore) == 0


def test_what_can_not_be_resumed(pu_settings, pu_run, trained, tmp_path, export):
    for overrides, message in (
        (["pu.ratio=0.5"], r"pu\.ratio was 1\.0, is 0\.5"),
        (["pu.seed=1"], r"pu\.seed was 0, is 1"),
        (["model.width=5"], r"model\.width was 4, is 5"),
    ):
        with pytest.raises(CheckpointError, match=f"can't resume with other settings: {message}"):
            pu_fit(build(pu_settings, overrides), pu_run, resume=True)
    with pytest.raises(CheckpointError, match="side by side was 'serial', is 'batched'"):
        pu_fit(build(pu_settings), pu_run, resume=True, side_by_side="batched")
    with pytest.raises(ConfigError, match="is not empty"):
        pu_fit(build(pu_settings), pu_run)
    with pytest.raises(ConfigError, match="holds another kind of run"):
        pu_fit(build(pu_settings), trained, resume=True)
    with pytest.raises(ConfigError, match="no finished run of positive and unlabelled"):
        PURun.load(trained)
    shutil.copytree(pu_run, tmp_path / "run")
    plan = orjson.loads((pu_run / "plan.json").read_bytes())
    (tmp_path / "run" / "plan.json").write_bytes(orjson.dumps({**plan, "heldout": plan["heldout"][1:]}))
    with pytest.raises(CheckpointError, match="was begun on other crystals or labels"):
        pu_fit(build(pu_settings), tmp_path / "run", resume=True)
    (tmp_path / "run" / "pu.json").write_text('{"side_by_side": "x"}')
    with pytest.raises(CheckpointError, match=r"pu\.json: could not be read"):
        pu_fit(build(pu_settings), tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    ("overrides", "way", "message"),
    [
        (["pu.way=baging"], "serial", "unknown way of learning 'baging'; did you mean 'bagging'"),
        ([], "batch", "unknown way to fit bags side by side 'batch'; did you mean 'batched'"),
        (["pu.way=nnpu"], "serial", "pu.way nnpu: needs pu.prior"),
        (["pu.way=spies"], "batched", "batched: not with pu.way nnpu or spies"),
        (["train.devices=2"], "serial", "train.devices: a bag is fitted on one device"),
        (["data.path=''"], "serial", "data.path: not set"),
    ],
)
def test_odd_settings_are_refused(pu_settings, tmp_path, overrides, way, message):
    with pytest.raises(ConfigError, match=message):
        pu_fit(build(pu_settings, overrides), tmp_path / "run", side_by_side=way)
    assert not (tmp_path / "run").exists()


def test_other_commands_refuse_these_settings(pu_settings, tmp_path):
    with pytest.raises(
        ConfigError, match="pu: these settings are for positive and unlabelled crystals; use cgnn pu fit"
    ):
        train(build(pu_settings), tmp_path / "run")


def test_batched_bags_are_added_in_whole_groups(pu_settings, tmp_path):
    config = build(pu_settings, ["train.epochs=1"])
    pu_fit(config, tmp_path / "run", side_by_side="batched")
    with pytest.raises(CheckpointError, match=r"fitted 2 at once \(pu.together\), so 3 can't become 4"):
        pu_fit(build(pu_settings, ["train.epochs=1", "pu.bags=4"]), tmp_path / "run", resume=True)


def test_the_table_of_ways():
    assert set(PU_WAYS) == {"bagging", "nnpu", "spies"}


def test_a_signal_saves_all_states(pu_settings, tmp_path):
    """SIGTERM to the command ends every bag with its state saved; resumed, it gives the unbroken one's bits."""
    config = build(pu_settings, ["train.epochs=8", "train.patience=null", "train.checkpoint_every=null", "pu.bags=2"])
    (tmp_path / "run.yaml").write_text(dump(config))
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "cgnn.cli", "pu", "fit", str(tmp_path / "run.yaml"), "--output", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"}
    child = subprocess.Popen(
        [*command, "--side-by-side", "processes", "--workers", "2"],
        env=environment,
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not all((folder / "bags" / bag / "history.jsonl").exists() for bag in ("0", "1")):
        assert child.poll() is None
        time.sleep(0.02)
    child.send_signal(signal.SIGTERM)
    _, said = child.communicate(timeout=300)
    assert child.returncode == 143, said
    assert "the state is saved" in said
    for bag in ("0", "1"):
        assert 1 <= read_tensors(folder / "bags" / bag / "last" / "state.safetensors")[1]["progress"]["epoch"] <= 8
    pu_fit(config, folder, resume=True, side_by_side="serial")
    pu_fit(config, tmp_path / "unbroken", side_by_side="serial")
    assert_same(folder, tmp_path / "unbroken")


@pytest.mark.slow
def test_bags_on_a_cluster(pu_settings, pu_run, tmp_path):
    """The same bits from two workers of a local Ray cluster."""
    pytest.importorskip("ray")
    pu_fit(build(pu_settings), tmp_path / "run", side_by_side="ray", workers=2)
    assert_same(tmp_path / "run", pu_run)
