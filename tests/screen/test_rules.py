"""Rules: what they say, what they refuse, and what is unknown."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from cgnn.errors import ConfigError
from cgnn.screen.rules import LONGEST, NUMBER, SET, TEXT, Rule

NAN = float("nan")
KINDS = {"hardness_p16": NUMBER, "clscore": NUMBER, "metal": NUMBER, "formula": TEXT, "elements": SET}
COLUMNS = {
    "hardness_p16": np.array([10.0, 40.0, NAN]),
    "clscore": np.array([0.9, 0.2, 0.7]),
    "metal": np.array([1.0, 0.0, 0.0]),
    "formula": np.array(["Cu", "BN", "C"], dtype=object),
    "elements": np.array([frozenset({"Cu"}), frozenset({"B", "N"}), frozenset({"C"})], dtype=object),
}
YES, NO, WHO_KNOWS = True, False, None


def values(text: str) -> list[bool | None]:
    rule = Rule.parse(text)
    rule.check(KINDS)
    truth = rule(COLUMNS)
    assert not (truth.true & ~truth.known).any()
    return [bool(true) if known else None for true, known in zip(truth.true, truth.known, strict=True)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hardness_p16 > 30", [NO, YES, WHO_KNOWS]),
        ("not hardness_p16 > 30", [YES, NO, WHO_KNOWS]),
        ("hardness_p16 > 30 and clscore > 0.5", [NO, NO, WHO_KNOWS]),
        ("hardness_p16 > 30 and clscore < 0.5", [NO, YES, NO]),  # unknown and false
        ("hardness_p16 > 30 or clscore > 0.5", [YES, YES, YES]),  # unknown or true
        ("hardness_p16 > 30 or clscore < 0.5", [NO, YES, WHO_KNOWS]),
        ("20 < hardness_p16 <= 40", [NO, YES, WHO_KNOWS]),
        ("2 * clscore - 0.2 >= 1.2 and clscore ** 2 < 1", [YES, NO, YES]),
        ("clscore / 0 > 1", [YES, YES, YES]),
        ("hardness_p16 == hardness_p16", [YES, YES, WHO_KNOWS]),
        ("not metal", [NO, YES, YES]),
        ("metal", [YES, NO, NO]),
        ("formula == 'BN'", [NO, YES, NO]),
        ("formula in ['C', 'Cu']", [YES, NO, YES]),
        ("clscore not in [0.9, 0.7]", [NO, YES, NO]),
        ("hardness_p16 in [10]", [YES, NO, WHO_KNOWS]),
        ("'B' in elements and 'C' not in elements", [NO, YES, NO]),
        ("-hardness_p16 < -20", [NO, YES, WHO_KNOWS]),
    ],
)
def test_values(text: str, expected: list[bool | None]) -> None:
    assert values(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hardness_p15 > 30", r"unknown column 'hardness_p15'; did you mean 'hardness_p16'\?.*clscore"),
        ("hardness_p16 = 30", "no expression: an assignment"),
        ("x := 3", "no expression"),
        ("hardness_p16 >", "no expression: invalid syntax"),
        ("", "is empty"),
        ("hardness_p16", "^$"),
        ("3", "gives no yes or no"),
        ("hardness_p16 + 3", "gives no yes or no"),
        ("abs(clscore) > 1", "a call is not allowed"),
        ("__import__('os').system('true') == 0", "a call is not allowed|an attribute"),
        ("clscore.real > 1", r"an attribute \(a.b\) is not allowed"),
        ("elements[0] == 'C'", "an index"),
        ("(lambda: 1) == 1", "a lambda"),
        ("[x for x in elements] == 1", "listcomp is not allowed"),
        ("clscore > 1 if metal else metal", "an if is not allowed"),
        ("clscore > 'a'", "a number can't be compared with a text"),
        ("formula > 'a'", "texts are compared by == and != only"),
        ("formula in [1, 2]", "'in' looks for a text in a list of numbers"),
        ("clscore in []", "at least one"),
        ("clscore in [1, 'a']", "either numbers or texts"),
        ("clscore in [metal]", "a list holds numbers and texts only"),
        ("formula * 2 > 1", "calculates with what is no number"),
        ("elements == 'C'", "a set can't be compared with a text"),
        ("clscore is 1", "write =="),
        ("~metal", "write not|no yes or no"),
        ("clscore == None", "expected numbers and texts, got None"),
        ("clscore > 1j", "expected numbers and texts"),
        ("clscore > 1e999", "larger than"),
        (f"clscore > {'9' * 400}", "larger than"),
        ("clscore << 2 > 1", r"of operators, \+ - "),
        ("formula", "neither a comparison nor a column of yes and no"),
        (f"{'(' * 300}metal{')' * 300}", "no expression"),
        (f"{'not ' * 100}metal", "deeper than"),
        ("metal " * LONGEST, "characters, at most"),
    ],
)
def test_refused(text: str, message: str) -> None:
    if message == "^$":
        assert values(text) == [YES, YES, WHO_KNOWS]
        return
    with pytest.raises(ConfigError, match=message):
        Rule.parse(text).check(KINDS)


def test_reasons_hold_the_numbers_of_what_fails() -> None:
    rule = Rule.parse("hardness_p16 > 30 and clscore > 0.5")
    assert rule.names == ["hardness_p16", "clscore"]
    assert rule.reasons(COLUMNS) == {
        0: "fails hardness_p16 > 30 (hardness_p16 10)",
        1: "fails clscore > 0.5 (clscore 0.2)",
        2: "can't be told: hardness_p16 > 30 (hardness_p16 unknown)",
    }


def test_travels_to_other_processes() -> None:
    rule = pickle.loads(pickle.dumps(Rule.parse("clscore > 0.5")))
    assert rule(COLUMNS).true.tolist() == [True, False, True]
