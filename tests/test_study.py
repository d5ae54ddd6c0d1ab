"""The table of a study says what its lines say."""

import json
import sys
import time

import pytest
from test_benchmarks import RUN


@pytest.fixture
def study(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(RUN.parent))
    import study

    monkeypatch.setattr(study, "STUDIES", tmp_path)
    yield study
    sys.modules.pop("study", None)


def test_rows_are_compared_with_the_first_seed_by_seed(study, tmp_path):
    """The changes are +10 and +30 %: their mean is 20 and its standard error 10; seed 2 of the base plays no part."""
    errors = {
        ("base", 0): 0.10,
        ("base", 1): 0.20,
        ("base", 2): 0.60,
        ("wide", 0): 0.11,
        ("wide", 1): 0.26,
        ("few", 1): 0.1,
    }
    lines = [{"row": row, "seed": seed, "gap": error, "seconds": 90.0} for (row, seed), error in errors.items()]
    (tmp_path / "some.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = {"base": [], "wide": ["model.width=128"], "few": ["data.limit=9"], "none yet": []}
    text = study.table("some", {"rows": rows, "scores": {"gap": "mae"}})
    assert [row.strip("| ").split(" | ") for row in text.splitlines()] == [
        ["row", "gap (mae)", "against base", "runs", "minutes", "changes (`-o`)"],
        ["---"] * 6,
        ["base", "0.3000 ± 0.2646", "", "3", "1.5", "none"],
        ["wide", "0.1850 ± 0.1061", "+20.0 ± 10.0 %", "2", "1.5", "`model.width=128`"],
        ["few", "0.1000", "-50.0 %", "1", "1.5", "`data.limit=9`"],
    ]


def test_what_waits_is_dropped_after_an_error(study, tmp_path, monkeypatch):
    from concurrent.futures import ThreadPoolExecutor

    started = []

    def run(number):
        started.append(number)
        time.sleep(0.05)
        if number == 1:
            raise ValueError("the second run failed")
        return {"number": number}

    monkeypatch.setattr(study, "ProcessPoolExecutor", ThreadPoolExecutor)
    with pytest.raises(ValueError, match="the second run failed"):
        study.record(tmp_path / "lines.jsonl", run, [(number,) for number in range(40)], 1)
    assert len(started) < 10
    assert json.loads((tmp_path / "lines.jsonl").read_text()) == {"number": 0}
