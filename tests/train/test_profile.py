import json

import numpy as np
import pytest
import torch

from cgnn.config import build
from cgnn.data.dataset import CrystalDataset
from cgnn.data.prepare import prepare
from cgnn.errors import ConfigError
from cgnn.model import CrystalGNN
from cgnn.train.loop import fit
from cgnn.train.profile import EDGES, PER_EPOCH, REST, Part, _Clock, profile, to_text

NAMES = {
    "batch", "embedding", EDGES, "convolution 1", "convolution 2", "pooling", "heads", "loss", "backward",
    "gradient clipping", "optimizer", "averaged weights", REST, *PER_EPOCH,
}  # fmt: skip


@pytest.fixture
def small(small_settings):
    config = build(small_settings)
    dataset = CrystalDataset(prepare(config.data, config.graph), config.targets)
    order = np.arange(len(dataset))
    return config, dataset, {"train": order[:-8], "val": order[-8:]}


def test_every_part_is_named_and_the_shares_add_up(small):
    found = profile(*small, steps=2)
    assert {part.name for part in found} == NAMES
    assert len(found) == len(NAMES)
    assert [part.name for part in found[-3:]] == [REST, *PER_EPOCH]
    for part in found:
        assert part.step > 0, part
        assert part.epoch > 0, part
        assert 0 < part.share < 1, part
    assert sum(part.share for part in found) == pytest.approx(1.0, abs=1e-12)


def test_step_parts_are_scaled_to_the_whole_epoch(small):
    config, dataset, parts = small
    whole = -(-len(parts["train"]) // config.train.batch_size)
    assert whole > 2
    for part in profile(config, dataset, parts, steps=2):
        assert part.epoch == pytest.approx(part.step / 1000 * whole, rel=1e-12)


def test_only_the_asked_steps_are_made(small, monkeypatch):
    seen = []
    plain = CrystalGNN.loss
    monkeypatch.setattr(
        CrystalGNN, "loss", lambda self, raw, graph, loss: seen.append(loss) or plain(self, raw, graph, loss)
    )
    profile(*small, steps=3)
    assert len(seen) == 2 * 3  # two epochs of three steps


def test_more_steps_than_an_epoch_has(small):
    assert {part.name for part in profile(*small, steps=1000)} == NAMES


def test_the_loop_is_left_as_it_was(small, tmp_path):
    owners = (CrystalDataset.batch, CrystalGNN.loss, torch.nn.utils.clip_grad_norm_)
    profile(*small, steps=1)
    assert owners == (CrystalDataset.batch, CrystalGNN.loss, torch.nn.utils.clip_grad_norm_)
    assert not torch.nn.modules.module._global_forward_hooks
    assert not torch.nn.modules.module._global_forward_pre_hooks
    with pytest.raises(ConfigError, match="unknown loss"):
        profile(_with(small[0], {"loss": "mea"}), *small[1:], steps=1)
    assert owners[0] is CrystalDataset.batch
    assert not torch.nn.modules.module._global_forward_hooks
    assert len(fit(*small, tmp_path).history) == 3


def test_trace_holds_the_operations(small, tmp_path):
    found = profile(*small, steps=1, trace=tmp_path / "trace.json")
    assert {part.name for part in found} == NAMES
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert any("addmm" in str(event.get("name")) for event in events)


def test_no_steps(small):
    with pytest.raises(ConfigError, match="steps: expected at least 1, got 0"):
        profile(*small, steps=0)


def test_compiled_networks_are_refused(small):
    with pytest.raises(ConfigError, match=r"train\.compile: the parts of a compiled network can't be told apart"):
        profile(_with(small[0], {"compile": True}), *small[1:])


def test_text_has_a_line_per_part_and_a_total():
    lines = to_text([Part("batch", 1.0, 0.25, 0.25), Part(REST, 3.0, 0.75, 0.75)]).splitlines()
    assert [line.split() for line in lines[1:]] == [
        ["batch", "1.000", "0.250", "25.0%"],
        [*REST.split(), "3.000", "0.750", "75.0%"],
        ["total", "4.000", "1.000", "100.0%"],
    ]


def test_clock_counts_the_innermost_part(small, monkeypatch):
    clock = _Clock(small[0])
    now = iter(range(100))
    monkeypatch.setattr(clock, "_now", lambda: float(next(now)))
    clock.reset()  # at 0
    clock.start("outer")  # 1
    clock.start("inner")  # 2
    clock.stop()  # 3
    clock.stop()  # 4
    clock.start("validation")  # 5
    clock.start("batch")  # 6, counts as validation
    clock.stop()  # 7
    clock.stop()  # 8
    assert clock.read() == {REST: 1.0 + 1.0 + 1.0, "outer": 1.0 + 1.0, "inner": 1.0, "validation": 3.0}


def _with(config, training):
    return config.model_copy(update={"train": config.train.model_copy(update=training)})
