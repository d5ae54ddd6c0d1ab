import json

from cgnn.train.profile import EDGES, PER_EPOCH, REST


def test_profile_shows_where_the_time_goes(cgnn, config):
    result = cgnn("profile", config, "--steps", 2)
    assert result.code == 0
    lines = result.out.splitlines()
    assert lines[0].split() == ["part", "ms", "per", "step", "s", "per", "epoch", "share"]
    for name in ("batch", EDGES, "convolution 2", "backward", "optimizer", REST, *PER_EPOCH):
        assert any(line.startswith(name) for line in lines), name
    assert lines[-1].split()[0] == "total"
    assert lines[-1].endswith("100.0%")


def test_profile_takes_settings_and_writes_a_trace(cgnn, config, tmp_path):
    trace = tmp_path / "trace.json"
    result = cgnn("profile", config, "-o", "model.depth=1", "--steps", 1, "--device", "cpu", "--trace", trace)
    assert result.code == 0
    assert "convolution 1" in result.out
    assert "convolution 2" not in result.out
    assert str(trace) in result.err
    assert json.loads(trace.read_text())["traceEvents"]


def test_profile_of_nothing(cgnn, config):
    result = cgnn("profile", config, "-o", "data.path=")
    assert result.code == 2
    assert "data.path" in result.err
    assert cgnn("profile", config, "--steps", 0).code == 2


def test_profile_leaves_no_run(cgnn, config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cgnn("profile", config, "--steps", 1).code == 0
    assert not list(tmp_path.iterdir())
