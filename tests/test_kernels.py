"""The compiled loops are there where they can be, and left out where they are not wanted."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from cgnn.kernels import load

HAS_COMPILER = shutil.which((sysconfig.get_config_var("CC") or "cc").split()[0]) is not None


@pytest.mark.skipif(not HAS_COMPILER, reason="no C compiler here")
@pytest.mark.skipif(os.environ.get("CGNN_KERNELS") == "off", reason="CGNN_KERNELS=off")
@pytest.mark.parametrize("name", ["gate", "edgewise", "neighbors", "trees"])
def test_kernels_were_compiled(name):
    assert load(name) is not None, "install again (make), or: python setup.py build_ext --inplace"


def test_a_library_that_is_not_there():
    assert load("nothing") is None


def test_kernels_can_be_left_out(export: Path, trained: Path, tmp_path: Path):
    """The same predictions, to single precision, without the compiled libraries."""
    tables = []
    for value in ("", "off"):
        table = tmp_path / f"{value or 'on'}.csv"
        command = [sys.executable, "-m", "cgnn.cli", "predict", str(trained), str(export), "--output", str(table)]
        subprocess.run(command, check=True, env={**os.environ, "CGNN_KERNELS": value}, capture_output=True)
        tables.append([line.split(",") for line in table.read_text().splitlines()[1:]])
    assert [row[0] for row in tables[0]] == [row[0] for row in tables[1]]
    for row, other in zip(*tables, strict=True):
        assert [float(cell) for cell in row[1:3]] == pytest.approx([float(cell) for cell in other[1:3]], rel=1e-5)
