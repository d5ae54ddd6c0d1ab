"""A study of depth: trainings that are watched, what they leave, and what the numbers say."""

import csv
import json

import numpy as np
import pytest
import torch

from cgnn.cli.depth_report import write_depth_report
from cgnn.config import build
from cgnn.data.dataset import CrystalDataset
from cgnn.data.prepare import prepare
from cgnn.errors import CheckpointError, ConfigError, DataError, NumericsError
from cgnn.model import CrystalGNN
from cgnn.model.depth import MEASURES, smoothness
from cgnn.train import Run, train
from cgnn.train.checkpoint import load_model
from cgnn.train.depth import cures, depth_study, read_table, verdicts
from cgnn.train.depth.study import parameters, planned, width_for
from cgnn.train.depth.watch import LAYERS_FILE, measurable, read_layers, watching
from cgnn.train.ways.noisy import Around

GRID = ["depth.depths=[1,2]", "depth.remedies=[none,jumping]", "depth.seeds=[3]", "train.epochs=2"]


class Killed(BaseException):
    """Stands for kill -9."""


@pytest.fixture
def config(small_settings):
    return build(small_settings, ["train.epochs=2"])


def without_time(row):
    """Return what a row says of the network; nan, which equals nothing, is left out."""
    return {name: value for name, value in row.items() if value == value and name != "seconds"}


def dataset_of(config):
    return CrystalDataset(prepare(config.data, config.graph), config.targets)


# Watched trainings


def test_only_crystals_with_inequivalent_sites_are_measured(config):
    dataset = dataset_of(config)
    every = np.arange(len(dataset))
    found = measurable(dataset, every, 10**6)
    assert 0 < len(found) < len(every)
    assert all(len(dataset[index].z) > 1 for index in found.tolist())
    few = measurable(dataset, every, 3)
    assert len(few) == 3
    assert set(few.tolist()) <= set(found.tolist())
    assert np.array_equal(few, measurable(dataset, every, 3))


def test_a_watched_training_learns_the_same_to_the_last_bit(config, tmp_path):
    dataset = dataset_of(config)
    crystals = measurable(dataset, np.arange(len(dataset)), 5)
    plain = train(config, tmp_path / "plain")
    watched = train(config, tmp_path / "watched", around=watching(dataset, crystals, tmp_path / "watched"))
    first, second = (load_model(run.model_file).members[0].state_dict() for run in (plain, watched))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert [row["val_score"] for row in plain.history] == [row["val_score"] for row in watched.history]

    rows = read_layers(tmp_path / "watched" / LAYERS_FILE)
    assert [row["epoch"] for row in rows] == [1, 2]
    model, info = load_model(watched.model_file)
    best = next(row for row in rows if row["epoch"] == info.summary["epoch"])
    for name, values in smoothness(model[0], [dataset.batch(crystals)]).items():
        assert best[name] == pytest.approx(values.mean(1).tolist(), rel=1e-6)
    assert all(len(row["gradient"]) == len(row["update"]) == 2 for row in rows)
    assert min(rows[0]["gradient"] + rows[0]["update"]) > 0


def test_the_first_gradient_is_that_of_the_untrained_network(config, tmp_path):
    dataset = dataset_of(config)
    crystals = measurable(dataset, np.arange(len(dataset)), 2)
    seen = {}

    class Spy:
        def __init__(self, way):
            self.way = way

        def __getattr__(self, name):
            return getattr(self.way, name)

        def loss(self, step):
            if not seen:
                twin = CrystalGNN(step.model.config, step.model.targets).train()
                twin.load_state_dict(step.model.state_dict())
                twin.loss(twin(step.batch), step.batch, step.settings.loss).backward()
                seen["norms"] = [
                    torch.cat([p.grad.flatten() for p in conv.parameters()]).norm().item() for conv in twin.convs
                ]
            return self.way.loss(step)

    train(config, tmp_path / "run", around=lambda way: Spy(watching(dataset, crystals, tmp_path / "run")(way)))
    assert read_layers(tmp_path / "run" / LAYERS_FILE)[0]["gradient"] == pytest.approx(seen["norms"], rel=1e-4)


def test_an_interrupted_training_leaves_the_same_rows(config, tmp_path):
    dataset = dataset_of(config)
    crystals = measurable(dataset, np.arange(len(dataset)), 4)

    def kill(row):
        raise Killed

    for name in ("whole", "killed"):
        around = watching(dataset, crystals, tmp_path / name)
        if name == "killed":
            with pytest.raises(Killed, match=r"^$"):
                train(config, tmp_path / name, report=kill, around=around)
        train(config, tmp_path / name, name == "killed", around=around)
    assert (tmp_path / "whole" / LAYERS_FILE).read_bytes() == (tmp_path / "killed" / LAYERS_FILE).read_bytes()


def test_a_training_interrupted_within_an_epoch_leaves_the_same_rows(small_settings, tmp_path):
    config = build(small_settings, ["train.epochs=2", "train.checkpoint_every=1"])
    dataset = dataset_of(config)
    crystals = measurable(dataset, np.arange(len(dataset)), 4)

    class Fatal(Around):
        def draw(self, indices, epoch, step):
            if (epoch, step) == (1, 2):
                raise Killed
            return super().draw(indices, epoch, step)

    for name in ("whole", "killed"):
        around = watching(dataset, crystals, tmp_path / name)
        if name == "killed":
            with pytest.raises(Killed, match=r"^$"):
                train(config, tmp_path / name, around=lambda way, around=around: Fatal(around(way)))
        train(config, tmp_path / name, name == "killed", around=around)
    assert (tmp_path / "whole" / LAYERS_FILE).read_bytes() == (tmp_path / "killed" / LAYERS_FILE).read_bytes()


# Studies


def test_all_depths_and_remedies_come_with_the_first_seed_before_the_next(small_settings):
    fits = planned(build(small_settings, [*GRID, "depth.seeds=[3,4]"]))
    assert [fit.name for fit in fits] == [
        f"{remedy}-depth-{depth}-seed-{seed}" for seed in (3, 4) for depth in (1, 2) for remedy in ("none", "jumping")
    ]


def test_a_fit_whose_numbers_become_infinite_does_not_stop_the_others(small_settings, tmp_path, monkeypatch):
    def diverging(config, *place, **named):
        if config.model.depth == 1:
            raise NumericsError("the loss became nan in epoch 1, step 2; the last state before it is kept")
        return train(config, *place, **named)

    monkeypatch.setattr("cgnn.train.depth.study.train", diverging)
    config = build(small_settings, [*GRID, "depth.remedies=[none]"])
    study = depth_study(config, tmp_path / "study", workers=1)
    assert {row["depth"] for row in study.rows} == {2}
    assert list(study.failed) == ["none-depth-1-seed-3"]
    again = depth_study(config, tmp_path / "study", resume=True, workers=1)
    assert again.failed == study.failed
    assert write_depth_report(again)[-1] == (
        "none-depth-1-seed-3 is not in the table: the loss became nan in epoch 1, step 2"
    )


def test_a_study_leaves_a_run_for_each_fit_and_a_row_for_each_layer(small_settings, tmp_path):
    config = build(small_settings, GRID)
    told = []
    study = depth_study(config, tmp_path / "study", workers=1, report=lambda name: lambda row: told.append(name))
    names = [f"{remedy}-depth-{depth}-seed-3" for depth in (1, 2) for remedy in ("none", "jumping")]
    assert told == [name for name in names for _ in range(2)]
    with open(tmp_path / "study" / "depth.csv", newline="") as handle:
        table = list(csv.DictReader(handle))
    keys = [(int(row["depth"]), row["remedy"], int(row["layer"])) for row in table]
    assert keys == [(d, r, layer) for d in (1, 2) for r in ("none", "jumping") for layer in range(d + 1)]
    for row, written in zip(study.rows, table, strict=True):
        run = Run.load(study.folder / "fits" / f"{row['remedy']}-depth-{row['depth']}-seed-3")
        assert run.config.model.residual == (row["remedy"] != "none")
        assert run.config.model.remedy == ("none" if row["remedy"] == "none" else row["remedy"])
        assert row["test_bulk_modulus"] == run.metrics["test"]["bulk_modulus"]["mae_log10"]
        assert row["parameters"] == parameters(run.config)
        assert float(written["mad"]) == pytest.approx(row["mad"], rel=1e-6)
        assert np.isnan(row["gradient"]) == (row["layer"] == 0)
        assert all(np.isfinite(row[name]) for name in MEASURES)
    for row, read in zip(study.rows, read_table(study.folder / "depth.csv"), strict=True):
        assert read.pop("remedy") == row["remedy"]
        assert read == pytest.approx({name: row[name] for name in read}, rel=1e-6, nan_ok=True)

    before = {path: path.stat().st_mtime_ns for path in (study.folder / "fits").rglob("*") if path.is_file()}
    more = build(small_settings, [*GRID, "depth.depths=[1,2,3]"])
    grown = depth_study(more, study.folder, resume=True, workers=1)
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert grown.rows[: len(study.rows)] == study.rows
    assert {row["depth"] for row in grown.rows} == {1, 2, 3}

    with pytest.raises(ConfigError, match="is not empty"):
        depth_study(config, study.folder)
    with pytest.raises(CheckpointError, match=r"train\.epochs was 2, is 5"):
        depth_study(build(small_settings, [*GRID, "train.epochs=5"]), study.folder, resume=True)


def test_side_by_side_and_after_a_kill_the_table_is_the_same(small_settings, tmp_path):
    config = build(small_settings, [*GRID, "depth.remedies=[none]"])
    one = depth_study(config, tmp_path / "one", workers=1)

    def kill(name):
        def killed(row):
            if name.startswith("none-depth-2"):
                raise Killed

        return killed

    with pytest.raises(Killed, match=r"^$"):
        depth_study(config, tmp_path / "two", workers=1, report=kill)
    with open(tmp_path / "two" / "depth.csv", newline="") as handle:
        assert {row["depth"] for row in csv.DictReader(handle)} == {"1"}  # what is done so far
    for place in (tmp_path / "two", tmp_path / "three"):
        two = depth_study(config, place, resume=place.exists(), workers=2)
        assert [without_time(row) for row in two.rows] == [without_time(row) for row in one.rows]


@pytest.mark.slow
def test_a_cluster_leaves_the_same_table(small_settings, tmp_path):
    """Two workers of a local Ray cluster."""
    pytest.importorskip("ray")
    config = build(small_settings, [*GRID, "depth.remedies=[none]"])
    one, cluster = (depth_study(config, tmp_path / way, workers=2, side_by_side=way).rows for way in ("serial", "ray"))
    assert [without_time(row) for row in cluster] == [without_time(row) for row in one]


def test_no_such_way_to_share_a_machine(small_settings, tmp_path):
    with pytest.raises(ConfigError, match="unknown way to fit side by side 'batched'"):
        depth_study(build(small_settings, GRID), tmp_path / "study", side_by_side="batched")


def test_fixed_parameters_choose_the_width(small_settings):
    config = build(small_settings, [*GRID, "depth.fixed=parameters", "model.width=32", "depth.depths=[1,2,8]"])
    wanted = parameters(config)
    fits = planned(config)
    widths = {fit.config.model.depth: fit.config.model.width for fit in fits if fit.remedy == "none"}
    assert widths[1] > widths[2] == 32 > widths[8]
    for fit in fits:
        width = fit.config.model.width
        assert width == width_for(fit.config, wanted)
        found = [
            parameters(build(fit.config.model_dump(mode="json"), [f"model.width={width + step}"]))
            for step in (-1, 0, 1)
        ]
        assert min(found, key=lambda count: abs(count - wanted)) == found[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["depth.remedies=[pairnorm]"], "unknown remedy 'pairnorm'; did you mean 'pair_norm'"),
        (["model.remedy=jumping"], r"model\.remedy: a study of depth sets it itself"),
        (["data.split.test=0.0"], r"data\.split\.test: a study of depth needs"),
        (["data.split.val=0.0"], r"data\.split\.val: a study of depth needs"),
    ],
)
def test_what_can_not_be_studied_is_said_at_the_door(changes, message, small_settings, tmp_path):
    with pytest.raises(ConfigError, match=message):
        depth_study(build(small_settings, [*GRID, *changes]), tmp_path / "study")


def test_a_table_of_something_else_is_refused(tmp_path):
    (tmp_path / "other.csv").write_text("depth,seed\n1,2\n")
    (tmp_path / "empty.csv").write_text("")
    for name, message in (("other", "no column"), ("empty", "no column"), ("none", "No such file")):
        with pytest.raises(DataError, match=message):
            read_table(tmp_path / f"{name}.csv")


# Verdicts


def table(test, train, measure=1.0, gradient=1.0, depths=(2, 4, 16), seeds=3, bottleneck=None):
    """Rows of one remedy: at the deepest, measures of a layer (the last) and the first gradient are multiplied."""
    rows = []
    for place, depth in enumerate(depths):
        is_deep = depth == depths[-1]
        for seed in range(seeds):
            wiggle = 1 + 0.002 * (seed - 1)
            for layer in range(depth + 1):
                row = {"depth": depth, "remedy": "residual", "seed": seed, "layer": layer}
                factor = measure if is_deep and layer == (bottleneck or depth) else 1.0
                row |= dict.fromkeys(MEASURES, 0.5 * factor) | {"effective_rank": 1 + 2 * factor}
                row |= {"gradient_start": 0.3 * (gradient if is_deep else 1.0)}
                rows.append(row | {"test_y": test[place] * wiggle, "train_y": train[place] * wiggle})
    return rows


@pytest.mark.parametrize(
    ("numbers", "causes", "words"),
    [
        ({"test": (1.0, 0.9, 0.9), "train": (0.8, 0.6, 0.5)}, (), "does not rise"),
        ({"test": (1.0, 0.9, 1.2), "train": (0.8, 0.6, 0.4)}, ("overfitting",), "training error does not rise"),
        (
            {"test": (1.0, 0.9, 1.2), "train": (0.8, 0.6, 0.9), "measure": 1e-3},
            ("over-smoothing",),
            "collapsed measures: dirichlet, relative_dirichlet, mad, effective_rank: over-smoothing",
        ),
        (
            {"test": (1.0, 0.9, 1.2), "train": (0.8, 0.6, 0.9), "gradient": 1e-3},
            ("vanishing gradients",),
            "gradient x 0.001; collapsed measures: none: vanishing gradients",
        ),
        (
            {"test": (1.0, 0.9, 1.2), "train": (0.8, 0.6, 0.9), "measure": 1e-3, "bottleneck": 7},
            ("over-smoothing",),
            "collapsed measures: dirichlet, relative_dirichlet, mad, effective_rank: over-smoothing",
        ),
        (
            {"test": (1.0, 0.9, 1.2), "train": (0.8, 0.6, 0.9), "gradient": 300},
            ("exploding gradients",),
            "gradient x 300; collapsed measures: none: exploding gradients",
        ),
        (
            {"test": (1.0, 0.9, 1.2), "train": (0.8, 0.6, 0.9), "gradient": 1e-3, "measure": 0.01},
            ("over-smoothing", "vanishing gradients"),
            "over-smoothing and vanishing gradients",
        ),
        (
            {"test": (1.0, 0.9, 1.2), "train": (0.8, 0.6, 0.9)},
            ("optimisation, not over-smoothing",),
            "rises too (x 1.50)",
        ),
    ],
)
def test_verdicts_tell_the_causes_apart(numbers, causes, words):
    (verdict,) = verdicts(table(**numbers), ["y"])
    assert verdict.causes == causes
    assert words in verdict.text()
    assert (verdict.best, verdict.rises_from) == (4, 16 if causes else None)
    assert verdict.test == pytest.approx(numbers["test"], rel=1e-12)


def test_what_lies_within_the_spread_of_the_seeds_does_not_rise():
    rows = table((1.0, 0.9, 0.96), (0.8, 0.6, 0.9))
    assert verdicts(rows, ["y"])[0].rises_from == 16
    for row in rows:
        row["test_y"] += 0.1 * (row["seed"] - 1)
    assert verdicts(rows, ["y"])[0].rises_from is None


def test_one_depth_or_one_seed_is_no_fault():
    (verdict,) = verdicts(table((0.9,), (0.5,), depths=(3,), seeds=1), ["y"])
    assert verdict.text() == "y, residual: one depth only, error 0.8982"
    json.dumps(vars(verdict), allow_nan=False)


def test_what_remedies_reach_beside_the_best_that_is_shallower():
    plain, cured = table((1.0, 0.9, 1.2), (0.5, 0.5, 0.5)), table((1.0, 0.95, 0.918), (0.5, 0.5, 0.5))
    rows = [*plain, *({**row, "remedy": "jumping"} for row in cured)]
    (cure,) = cures(rows, ["y"])
    assert cure.errors == pytest.approx({"residual": 1.2, "jumping": 0.918}, rel=1e-12)
    assert cure.shallow == ("residual", 4)
    assert cure.text() == (
        "y at 16 layers: jumping is best (0.918), +2.0% against the best shallow one (residual, 4 layers, 0.9)"
    )
    assert [each.depth for each in cures(table((1, 1, 1), (1, 1, 1), depths=(2, 8, 9)), ["y"])] == [8, 9]
    assert cures(table((0.9,), (0.5,), depths=(3,)), ["y"]) == []
