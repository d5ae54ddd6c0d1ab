import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cgnn.errors import DataError
from cgnn.files import replacing, write_bytes, write_json, write_text


def test_written_whole(tmp_path):
    write_bytes(tmp_path / "new" / "a.bin", b"\x00\x01")
    write_text(tmp_path / "b.txt", "Å\n")
    write_json(tmp_path / "c.json", {"a": [1, 2.5, None]})
    assert (tmp_path / "new" / "a.bin").read_bytes() == b"\x00\x01"
    assert (tmp_path / "b.txt").read_text(encoding="utf-8") == "Å\n"
    assert json.loads((tmp_path / "c.json").read_text()) == {"a": [1, 2.5, None]}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b.txt", "c.json", "new"]


def test_an_error_keeps_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def half():
        with replacing(path) as temporary:
            temporary.write_text("ne")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        half()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_synced_before_and_after_the_rename(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(descriptor):
        calls.append(("fsync", os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def noted_replace(source, target):
        calls.append(("replace", str(source), str(target)))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    write_text(tmp_path / "a.txt", "new")
    (_, synced), (_, source, target), (_, folder) = calls
    assert [call[0] for call in calls] == ["fsync", "replace", "fsync"]
    assert synced == source
    assert Path(source).parent == tmp_path  # not on another file system
    assert target == str(tmp_path / "a.txt")
    assert folder == str(tmp_path)


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("code", [28, 122, 5], ids=["full", "quota", "io"])
def test_failing_disk_names_path_and_cause(tmp_path, monkeypatch, call, code):
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def fail(*args):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(DataError, match=rf"a\.txt: could not be written: {os.strerror(code)}"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


class Count:
    value = 0


def failing(call, count, fatal, once):
    """Return a system call that fails when the n-th call of all comes, for once or from then on."""

    def wrapped(*args, **kwargs):
        count.value += 1
        if count.value == fatal if once else count.value >= fatal:
            raise OSError(28, "No space left on device")
        return call(*args, **kwargs)

    return wrapped


@pytest.mark.parametrize("once", [True, False])
def test_dies_or_fails_at_every_call(tmp_path, monkeypatch, once):
    """Whatever system call fails, for once or for good: the old file or the new one, and never a third."""
    outcomes = set()
    for fatal in range(1, 12):
        path = tmp_path / str(fatal) / "a.txt"
        write_text(path, "old")
        with monkeypatch.context() as patch:
            count = Count()
            for name in ("open", "fsync", "replace", "mkdir"):
                patch.setattr(os, name, failing(getattr(os, name), count, fatal, once))
            try:
                write_text(path, "new")
                outcomes.add("written")
            except DataError as error:
                assert "a.txt: could not be written: No space left on device" in str(error)  # noqa: PT017
                outcomes.add("refused")
        assert path.read_text() in ("old", "new")
        assert os.listdir(path.parent) == ["a.txt"]
    assert outcomes == {"written", "refused"}


def test_a_file_where_a_folder_should_be(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match=r"file/a\.txt: could not be written"):
        write_text(tmp_path / "file" / "a.txt", "new")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match=r"folder: could not be written"):
        write_text(tmp_path / "folder", "new")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_folder(tmp_path):
    tmp_path.chmod(0o555)
    with pytest.raises(DataError, match="could not be written: Permission denied"):
        write_text(tmp_path / "a.txt", "new")


def test_no_space_left(tmp_path):
    """A real limit of the file size, which cuts the write in the middle."""
    path = tmp_path / "a.bin"
    write_bytes(path, b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    try:
        with pytest.raises(DataError, match=r"a\.bin: could not be written: File too large"):
            write_bytes(path, bytes(1 << 20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


WRITER = """
import sys
from cgnn.files import write_bytes
for round in range(10**9):
    write_bytes(sys.argv[1], bytes([round % 256]) * 300_000)
    print(round % 256, flush=True)
"""


def kill_a_writer(path, delay):
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]
    )
    process.stdout.readline()  # the first is acknowledged
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    acknowledged = process.stdout.read().split()
    process.stdout.close()
    process.wait()
    content = path.read_bytes()
    assert len(content) == 300_000
    assert len(set(content)) == 1
    last = int(acknowledged[-1]) if acknowledged else 0
    assert content[0] in (last, (last + 1) % 256)  # at least what was acknowledged


def test_killed_while_writing(tmp_path, rng):
    for _ in range(4):
        kill_a_writer(tmp_path / "a.bin", rng.uniform(0, 0.05))


@pytest.mark.slow
def test_killed_while_writing_often(tmp_path, rng):
    for _ in range(40):
        kill_a_writer(tmp_path / "a.bin", rng.uniform(0, 0.1))
