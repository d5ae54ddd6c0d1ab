"""What is stored is all that is needed: another process, knowing nothing but the file, predicts the same."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from cgnn.predict import Predictor

ROOT = Path(__file__).parents[2]
SCRIPT = """
import json, sys
from cgnn import Predictor
found = Predictor.load(sys.argv[1], device="cpu").predict(sys.argv[2])
print(json.dumps({"ids": found.ids, **{name: values.tolist() for name, values in found.columns.items()}}))
"""


def test_same_numbers_in_a_fresh_process(trained, export, tmp_path):
    expected = Predictor.load(trained, "cpu").predict(export)
    model = shutil.copy(trained / "best" / "model.safetensors", tmp_path / "renamed.safetensors")
    # elsewhere, another home, another hash seed: nothing beside the file may matter
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "PYTHONHASHSEED": "7",
        "OMP_NUM_THREADS": "1",
        "HOME": str(tmp_path),
    }
    found = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(model), str(export)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    values = json.loads(found.stdout)
    assert values.pop("ids") == expected.ids
    assert set(values) == set(expected.columns)
    for name, column in values.items():
        np.testing.assert_array_equal(column, expected[name])
