"""Which processes see which GPUs."""

import multiprocessing
from collections import deque
from pathlib import Path

import pytest
import torch

from cgnn.config import build
from cgnn.train.ensembles import side_by_side
from cgnn.train.ensembles.member import Member

CONFIG = build({"targets": [{"name": "hardness"}], "train": {"device": "auto"}})


class Processes:
    """Stands for processes that never begin."""

    def __init__(self):
        self.devices = []

    Pipe = staticmethod(multiprocessing.Pipe)

    def process(self, target, args, daemon):
        self.devices.append(args[1].environment.get("CUDA_VISIBLE_DEVICES"))
        return self

    Process = process

    def start(self):
        pass

    kill = join = start


def crew(devices, monkeypatch, count=4):
    group = side_by_side.Group(CONFIG, None, {}, Path("nowhere"), tuple(Member(n, n) for n in range(count)))
    found = side_by_side._Crew(group, deque(), devices)
    started = Processes()
    monkeypatch.setattr(found, "_context", started)
    return found, started


def test_processes_share_out_the_gpus(monkeypatch):
    found, started = crew(["4", "7"], monkeypatch)
    for member in found.group.members[:3]:
        found.start(member)
    assert started.devices == ["4", "7", "4"]
    first, second, _ = found.running
    found._end(first)
    found._end(second)
    found.start(found.group.members[3])
    assert started.devices[3] == "7"
    found.close()
    assert not found.running


def test_without_gpus_nothing_is_said(monkeypatch):
    found, started = crew([], monkeypatch, 1)
    found.start(found.group.members[0])
    found.close()
    assert started.devices == [None]


@pytest.mark.parametrize(
    ("device", "available", "visible", "expected"),
    [
        ("auto", True, "", ["0", "1", "2"]),
        ("cuda", True, "5,2", ["5", "2"]),
        ("cpu", True, "", []),
        ("auto", False, "", []),
    ],
)
def test_which_gpus_there_are(device, available, visible, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    config = CONFIG.model_copy(update={"train": CONFIG.train.model_copy(update={"device": device})})
    assert side_by_side.gpus(config) == expected
