import itertools
import json
import math

import numpy as np
import orjson
import pytest
import torch
from pymatgen.core import Lattice, Structure

from cgnn.config import build
from cgnn.data.dataset import CrystalDataset
from cgnn.data.prepare import prepare
from cgnn.data.reading.gate import check_structure
from cgnn.data.records import Record
from cgnn.data.store import GraphStore, StoreWriter
from cgnn.errors import ConfigError, DataError, NumericsError
from cgnn.graph.build import GraphBuilder
from cgnn.model import CrystalGNN
from cgnn.train import engine
from cgnn.train.checkpoint import MODEL_FILE, STATE_FILE, read_tensors
from cgnn.train.loop import SCHEDULES, fit
from cgnn.train.run import train

TINY = {"width": 4, "depth": 1, "gaussians": 6, "head_width": 4, "elements": ["one_hot"]}
ENERGY = {"name": "energy", "unit": "eV/atom"}


def settings(targets=(ENERGY,), model=(), **training):
    training = {"epochs": 2, "batch_size": 4, "threads": 1, "device": "cpu", **training}
    return build({"targets": list(targets), "model": {**TINY, **dict(model)}, "train": training})


def elemental(number):
    """Return an elemental metal with one atom."""
    return Structure(Lattice.cubic(2.5 + 0.01 * number), [["Fe", "Cu", "Al"][number % 3]], [[0, 0, 0]])


@pytest.fixture
def make(tmp_path):
    """Make a data set of one-atom crystals with given values, and its parts."""
    serial = itertools.count()

    def made(values, config, val=0):
        path = tmp_path / f"store-{next(serial)}"
        builder = GraphBuilder(config.graph)
        with StoreWriter(path, "key") as writer:
            for number, row in enumerate(values):
                structure = elemental(number)
                record = Record(
                    f"c{number}", check_structure(structure), row if isinstance(row, dict) else {"energy": row}
                )
                writer.add(record, builder.arrays(structure))
        dataset = CrystalDataset(GraphStore(path), config.targets)
        order = np.arange(len(dataset))
        return dataset, {"train": order[: len(order) - val], "val": order[len(order) - val :], "test": order[:0]}

    return made


def energies(count):
    return [-3.0 + 0.1 * number for number in range(count)]


def weights(path):
    return read_tensors(path)[0]


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


# Schedules


def test_one_cycle_by_hand():
    one_cycle = SCHEDULES["one_cycle"]
    assert one_cycle(0.0) == pytest.approx(1 / 25)
    assert one_cycle(0.125) == pytest.approx((1 + 1 / 25) / 2)
    assert one_cycle(0.25) == pytest.approx(1.0)
    assert one_cycle(0.625) == pytest.approx((1 + 1e-4) / 2)
    assert one_cycle(1.0) == pytest.approx(1e-4)
    values = [one_cycle(share) for share in np.linspace(0, 1, 1001)]
    assert np.abs(np.diff(values)).max() < 0.01  # no jump where the parts meet
    assert np.argmax(values) == 250


def test_cosine_and_constant_by_hand():
    for share in (0.0, 0.3, 0.9, 1.0):
        assert SCHEDULES["cosine"](share) == pytest.approx(math.cos(math.pi * share / 2) ** 2)
        assert SCHEDULES["constant"](share) == 1.0


@pytest.mark.parametrize("name", SCHEDULES)
def test_rate_follows_the_schedule(make, tmp_path, name):
    config = settings(schedule=name, epochs=3, learning_rate=0.01)
    fitted = fit(config, *make(energies(10), config), tmp_path)  # 3 steps an epoch
    expected = [0.01 * SCHEDULES[name](last / 9) for last in (2, 5, 8)]
    assert [row["learning_rate"] for row in fitted.history] == pytest.approx(expected, rel=1e-12)


def test_unknown_names_are_told(make, tmp_path):
    for change, message in (
        ({"schedule": "cosin"}, "unknown schedule 'cosin'; did you mean 'cosine'"),
        ({"loss": "hubr"}, "unknown loss 'hubr'; did you mean 'huber'"),
        ({"model": {"pooling": "men"}}, "unknown pooling 'men'; did you mean 'mean'"),
    ):
        config = settings(**change)
        with pytest.raises(ConfigError, match=message):
            fit(config, *make(energies(6), config), tmp_path)


def test_cuda_that_is_not_there(make, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = settings(device="cuda")
    with pytest.raises(ConfigError, match=r"train\.device: 'cuda' was asked for, but torch sees no CUDA device"):
        fit(config, *make(energies(6), config), tmp_path)


# What is seen


def check_every_crystal_is_used(make, tmp_path, monkeypatch, counts, sizes):
    for count in counts:
        for size in sizes:
            config = settings(batch_size=size, schedule="constant")
            dataset, parts = make(energies(count), config)
            seen = []
            real = dataset.batch

            def batch(indices, real=real, seen=seen):
                seen.append(list(indices))
                return real(indices)

            monkeypatch.setattr(dataset, "batch", batch)
            fitted = fit(config, dataset, parts, tmp_path / f"{count}-{size}")
            assert len(seen) == 2 * math.ceil(count / size)
            epochs = [list(itertools.chain(*half)) for half in (seen[: len(seen) // 2], seen[len(seen) // 2 :])]
            assert [sorted(epoch) for epoch in epochs] == [list(range(count))] * 2
            assert all(len(indices) == size for indices in seen[: count // size])
            assert all(math.isfinite(row["train_loss"]) for row in fitted.history)
            if count > 8:
                assert epochs[0] != epochs[1]  # shuffled anew


def test_every_crystal_is_used(make, tmp_path, monkeypatch):
    """One-atom crystals among them: a last batch of one is a batch norm over one atom."""
    check_every_crystal_is_used(make, tmp_path, monkeypatch, (1, 2, 3, 9, 17), (1, 2, 3, 8, 16))


@pytest.mark.slow
def test_every_crystal_is_used_always(make, tmp_path, monkeypatch):
    check_every_crystal_is_used(make, tmp_path, monkeypatch, range(2, 41), (1, 2, 3, 8, 16))


def test_only_training_and_validation_are_looked_at(make, tmp_path):
    """Test labels a million times larger leave every byte of the model as it was."""
    config = settings(epochs=3)
    values = energies(20)
    for name, factor in (("a", 1.0), ("b", 1e6)):
        dataset, parts = make(values[:16] + [factor * value for value in values[16:]], config, val=8)
        parts = {"train": parts["train"], "val": parts["val"][:4], "test": parts["val"][4:]}
        fit(config, dataset, parts, tmp_path / name)
    assert (tmp_path / "a/best" / MODEL_FILE).read_bytes() == (tmp_path / "b/best" / MODEL_FILE).read_bytes()


def test_validation_labels_only_choose_the_epoch(make, tmp_path):
    config = settings(epochs=3)
    values = energies(20)
    for name, factor in (("a", 1.0), ("b", 1e6)):
        dataset, parts = make(values[:16] + [factor * value for value in values[16:]], config, val=4)
        fit(config, dataset, parts, tmp_path / name)
    assert_same(*(weights(tmp_path / name / "last" / STATE_FILE) for name in "ab"))
    scaling = [weights(tmp_path / name / "best" / MODEL_FILE)["0.heads.y_energy.mean"] for name in "ab"]
    assert torch.equal(*scaling)
    assert scaling[0].item() == pytest.approx(np.mean(values[:16]))


# The same again


def export_of(documents, path):
    path.write_bytes(orjson.dumps(documents))
    return str(path)


def test_same_seed_same_bytes(small_settings, trained, tmp_path):
    train(build(small_settings), tmp_path / "again")
    for name in (f"best/{MODEL_FILE}", "metrics.json", "predictions.csv", "split.json", "config.yaml"):
        assert (tmp_path / "again" / name).read_bytes() == (trained / name).read_bytes(), name
    assert_same(weights(tmp_path / "again/last" / STATE_FILE), weights(trained / "last" / STATE_FILE))


def test_state_of_the_caller_does_not_matter(make, tmp_path):
    config = settings(model={"dropout": 0.3})
    data = make(energies(10), config)
    for name in "ab":
        torch.rand(ord(name))  # moves the global random numbers
        np.random.seed(ord(name))
        fit(config, *data, tmp_path / name)
    assert_same(*(weights(tmp_path / name / "best" / MODEL_FILE) for name in "ab"))


def test_other_seed_other_weights(make, tmp_path):
    for seed in (0, 1):
        config = settings(seed=seed)
        fit(config, *make(energies(10), config), tmp_path / str(seed))
    first, second = (weights(tmp_path / str(seed) / "best" / MODEL_FILE) for seed in (0, 1))
    assert not torch.equal(first["0.convs.0.target.weight"], second["0.convs.0.target.weight"])


def test_order_of_the_file_does_not_matter(small_settings, embedded_documents, tmp_path, rng):
    documents = embedded_documents[::12][:40]
    path = tmp_path / "export.json"  # the same path: it is a part of the stored settings
    values = json.loads(json.dumps(small_settings))
    values["data"] |= {"path": str(path), "cache": str(tmp_path / "cache")}
    for name in "ab":
        export_of(documents, path)
        train(build(values), tmp_path / name)
        documents = [documents[row] for row in rng.permutation(len(documents))]
    for name in (f"best/{MODEL_FILE}", "metrics.json", "predictions.csv", "split.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    assert_same(*(weights(tmp_path / name / "last" / STATE_FILE) for name in "ab"))


def test_seeds_differ_by_purpose():
    drawn = set()
    for purpose in (("weights",), ("step", 0, 0), ("step", 0, 1), ("step", 1, 0)):
        engine.seed(0, *purpose)
        drawn.add(float(torch.rand(1)))
    engine.seed(1, "weights")
    assert float(torch.rand(1)) not in drawn
    assert len(drawn) == 4


def test_engine_is_left_as_it_was(make, tmp_path):
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    config = settings(threads=2)
    fit(config, *make(energies(6), config), tmp_path)
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == before


# Numbers that are not finite


def spoil(monkeypatch, call, damage):
    """Damage the loss of the n-th training step."""
    real = CrystalGNN.loss
    steps = itertools.count()

    def loss(self, raw, graph, name):
        value = real(self, raw, graph, name)
        return damage(self, value) if self.training and next(steps) == call else value

    monkeypatch.setattr(CrystalGNN, "loss", loss)


def gradient_only(model, loss):
    """Return a loss that is finite, with gradients that are not."""
    return loss + sum((parameter * 0).sqrt().sum() for parameter in model.parameters())


DAMAGES = {
    "loss nan": (lambda model, loss: loss * math.nan, "the loss became nan"),
    "loss inf": (lambda model, loss: loss / 0, "the loss became inf"),
    "gradient": (gradient_only, "the gradient became nan"),
}


@pytest.mark.parametrize("clip", [1.0, None])
@pytest.mark.parametrize("name", DAMAGES)
@pytest.mark.parametrize("call", [0, 4, 5])
def test_not_finite_stops_at_that_step(make, tmp_path, monkeypatch, name, call, clip):
    damage, message = DAMAGES[name]
    config = settings(epochs=3, clip=clip, ema=0.9, checkpoint_every=1)
    data, parts = make(energies(11), config, val=2)  # 3 steps an epoch
    with monkeypatch.context() as patch:
        spoil(patch, call, damage)
        batches = []
        real = data.batch
        patch.setattr(data, "batch", lambda indices: (batches.append(list(indices)), real(indices))[1])
        with pytest.raises(NumericsError, match=message) as caught:
            fit(config, data, parts, tmp_path / "run")
    text = str(caught.value)
    assert f"in epoch {call // 3 + 1}, step {call % 3 + 1}" in text
    assert text.endswith(", ".join(data.ids[index] for index in batches[-1]))
    state = tmp_path / "run" / "last" / STATE_FILE
    assert state.exists() == (call > 0)
    if call:
        assert all(torch.isfinite(tensor).all() for tensor in weights(state).values())
    fitted = fit(config, data, parts, tmp_path / "run", resume=True)  # with the cause gone
    fit(config, data, parts, tmp_path / "unbroken")
    assert len(fitted.history) == 3
    assert_same(*(weights(tmp_path / name / "best" / MODEL_FILE) for name in ("run", "unbroken")))


def test_optimizer_never_sees_a_bad_gradient(make, tmp_path, monkeypatch):
    config = settings(clip=None)
    data = make(energies(8), config)
    spoil(monkeypatch, 1, gradient_only)
    called = []
    real = torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, *args: (called.append(1), real(self, *args))[1])
    with pytest.raises(NumericsError, match="gradient"):
        fit(config, *data, tmp_path)
    assert len(called) == 1


# Stopping early, odd targets


def test_early_stopping(make, tmp_path):
    """Without normalisation and with next to no steps the score never gets better than the first."""
    frozen = {"norm": "none", "pair_norm": "none"}
    config = settings(epochs=50, patience=3, learning_rate=1e-30, weight_decay=0.0, ema=0.0, model=frozen)
    fitted = fit(config, *make(energies(12), config, val=4), tmp_path)
    assert len(fitted.history) == 4
    assert len({row["val_score"] for row in fitted.history}) == 1
    assert fitted.info.summary["epoch"] == 1


def test_best_epoch_is_kept(make, tmp_path):
    config = settings(epochs=12, learning_rate=0.05, schedule="constant", ema=0.0)
    fitted = fit(config, *make(energies(16), config, val=4), tmp_path)
    scores = [row["val_score"] for row in fitted.history]
    assert fitted.info.summary["epoch"] == 1 + int(np.argmin(scores))
    assert fitted.info.summary["val_score"] == min(scores)


def test_without_validation_the_last_epoch_is_kept(make, tmp_path):
    config = settings(epochs=4, ema=0.0)
    fitted = fit(config, *make(energies(8), config), tmp_path)
    assert fitted.info.summary["epoch"] == 4
    assert "val_score" not in fitted.history[-1]
    state = weights(tmp_path / "last" / STATE_FILE)
    assert_same(
        weights(tmp_path / "best" / MODEL_FILE),
        {name.replace("model.", "0.", 1): tensor for name, tensor in state.items() if name.startswith("model.")},
    )


@pytest.mark.parametrize("value", [0.0, 5.0, 0.1, 123.456, 1e-12, -7.3e5])
@pytest.mark.parametrize("transform", ["none", "log10"])
def test_constant_target(make, tmp_path, value, transform):
    if value <= 0 and transform == "log10":
        return
    config = settings([{**ENERGY, "unit": "", "transform": transform}], epochs=3)
    fitted = fit(config, *make([value] * 9, config, val=2), tmp_path)
    assert all(math.isfinite(row["train_loss"]) and row["train_loss"] < 10 for row in fitted.history)
    assert fitted.model.head("energy").std.item() == 1.0


@pytest.mark.parametrize("count", [1, 2])
def test_hardly_any_crystals(make, tmp_path, count):
    config = settings()
    fitted = fit(config, *make(energies(count), config), tmp_path)
    assert all(math.isfinite(row["train_loss"]) for row in fitted.history)


CLASSES = {"name": "energy", "task": "multiclass", "classes": ["a", "b", "c"]}


@pytest.mark.parametrize(
    ("target", "values"),
    [
        ({"name": "energy", "task": "binary"}, [True] * 9),
        ({"name": "energy", "task": "binary"}, [0] * 9),
        (CLASSES, ["b"] * 9),
        (CLASSES, ["a"] * 7 + ["c"] * 2),
    ],
)
def test_one_class_only(make, tmp_path, target, values):
    config = settings([target], epochs=3)
    fitted = fit(config, *make(values, config, val=2), tmp_path)
    assert all(math.isfinite(value) for row in fitted.history for value in row.values())


def test_no_label_to_train_on(make, tmp_path):
    """One target has labels in the validation part only: said before any training."""
    other = {"name": "other", "unit": "eV"}
    config = settings([ENERGY, other])
    rows = [{"energy": -1.0, "other": None} for _ in range(6)] + [{"energy": -1.5, "other": 2.0}] * 2
    with pytest.raises(DataError, match="target 'other': no training crystal has a label"):
        fit(config, *make(rows, config, val=2), tmp_path)
    assert not (tmp_path / "last").exists()


def test_labels_may_be_missing_in_whole_batches(make, tmp_path):
    """A batch in which one of two targets has no label at all trains the other."""
    other = {"name": "other", "unit": "eV"}
    config = settings([ENERGY, other], batch_size=1, epochs=3)
    rows = [{"energy": float(n), "other": None} if n % 2 else {"energy": None, "other": float(n)} for n in range(8)]
    fitted = fit(config, *make(rows, config, val=2), tmp_path)
    assert all(math.isfinite(value) for row in fitted.history for value in row.values())


@pytest.mark.parametrize("precision", ["64-true", "bf16-mixed"])
def test_other_precisions(make, tmp_path, precision):
    config = settings(precision=precision)
    fitted = fit(config, *make(energies(10), config, val=3), tmp_path)
    expected = torch.float64 if precision == "64-true" else torch.float32
    assert {parameter.dtype for parameter in fitted.model.parameters()} == {expected}
    assert all(math.isfinite(value) for row in fitted.history for value in row.values())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler itself warns in many ways
def test_a_compiled_network_learns_the_same(make, tmp_path):
    """Sums in another order: the losses agree to single precision, not to the bit."""
    histories = []
    for compiled in (False, True):
        config = settings(epochs=3, compile=compiled)
        histories.append(fit(config, *make(energies(10), config, val=3), tmp_path / str(compiled)).history)
    plain, compiled = ([row["train_loss"] for row in history] for history in histories)
    assert compiled == pytest.approx(plain, rel=1e-3)


@pytest.mark.parametrize("loss", ["mae", "mse", "huber"])
def test_training_loss_by_hand(make, tmp_path, monkeypatch, loss):
    """The loss of the history is the mean over crystals of what the formula gives on the scaled labels."""
    config = settings(loss=loss, epochs=1, batch_size=4, learning_rate=1e-30, ema=0.0)
    dataset, parts = make(energies(10), config)
    outputs = []
    real = CrystalGNN.loss

    def noted(self, raw, graph, name):
        outputs.append((raw["energy"][:, 0].detach().clone(), graph["y_energy"]))
        return real(self, raw, graph, name)

    monkeypatch.setattr(CrystalGNN, "loss", noted)
    fitted = fit(config, dataset, parts, tmp_path)
    formulas = {
        "mae": np.abs,
        "mse": np.square,
        "huber": lambda x: np.where(np.abs(x) < 1, x**2 / 2, np.abs(x) - 0.5),
    }
    labels = np.array(energies(10))
    raw = torch.cat([raw for raw, _ in outputs]).double().numpy()
    seen = torch.cat([label for _, label in outputs]).numpy()
    expected = formulas[loss](raw - (seen - labels.mean()) / labels.std()).mean()
    assert fitted.history[0]["train_loss"] == pytest.approx(expected, rel=1e-5)


def test_averaged_weights_by_hand(make, tmp_path, monkeypatch):
    """The stored model is the exponential average of the weights, with less memory in the first steps."""
    config = settings(ema=0.5, epochs=2, learning_rate=0.02)
    dataset, parts = make(energies(12), config)  # 3 steps an epoch
    path = []
    real = torch.optim.AdamW.step

    def step(self, *args):
        result = real(self, *args)
        path.append(self.param_groups[0]["params"][0].detach().clone().double())
        return result

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    fitted = fit(config, dataset, parts, tmp_path)
    average = path[0]
    for count, current in enumerate(path[1:], 1):
        decay = min(0.5, (1 + count) / (10 + count))
        average = decay * average + (1 - decay) * current
    found = next(p for p in fitted.model.parameters() if p.ndim > 1)
    torch.testing.assert_close(found.double(), average, rtol=1e-5, atol=1e-7)


def test_history_file_and_report(make, tmp_path):
    config = settings(epochs=3)
    rows = []
    fitted = fit(config, *make(energies(12), config, val=3), tmp_path, report=rows.append)
    lines = [orjson.loads(line) for line in (tmp_path / "history.jsonl").read_bytes().splitlines()]
    assert rows == fitted.history == lines
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    expected = {"train_loss", "learning_rate", "seconds", "val_score", "val_energy_mae", "val_energy_rmse"}
    assert expected <= set(rows[0])


def test_tensorboard(make, tmp_path):
    pytest.importorskip("tensorboard")
    config = settings(tensorboard=True)
    fit(config, *make(energies(8), config), tmp_path)
    assert list((tmp_path / "tensorboard").glob("events.*"))


def test_prepared_real_crystals_train(export, tmp_path, small_settings):
    config = build(small_settings)
    dataset = CrystalDataset(prepare(config.data, config.graph), config.targets)
    order = np.arange(len(dataset))
    fitted = fit(config, dataset, {"train": order, "val": order[:0], "test": order[:0]}, tmp_path)
    assert fitted.info.elements == tuple(sorted(dataset.elements(order)))
    assert fitted.info.baselines["bulk_modulus"]["value"] == pytest.approx(
        dataset.label(config.targets[0]).mean(), rel=1e-12
    )
