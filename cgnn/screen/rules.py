"""Rules such as ``hardness_mo_p16 > 30 and clscore > 0.5``: read into a small tree of their own, never evaluated.

What is unknown stays unknown (Kleene's three values): a comparison with ``nan`` is neither true nor false, nor is its
``not``; ``unknown and false`` is false, ``unknown or true`` is true. A filter keeps what is true, so that a crystal
whose value is unknown passes neither a rule nor its opposite.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cgnn.errors import ConfigError, unknown

Column = Any
"""Numbers or truths (n,), texts (n,), or sets of texts (n,)."""
Bools = NDArray[np.bool_]

NUMBER, TEXT, SET = "number", "text", "set"
"""Kinds of columns. Truths are the numbers 0 and 1."""

LONGEST = 1000
"""Characters of a rule."""
DEEPEST = 30
"""Levels of a rule's tree."""
_LARGEST = 1e300

_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
    ast.Eq: operator.eq, ast.NotEq: operator.ne,
}  # fmt: skip
_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.Mod: operator.mod, ast.Pow: operator.pow,
}  # fmt: skip
_NAMES: dict[type[ast.AST], str] = {
    ast.Call: "a call", ast.Attribute: "an attribute (a.b)", ast.Subscript: "an index (a[b])", ast.Lambda: "a lambda",
    ast.NamedExpr: "an assignment", ast.IfExp: "an if", ast.Await: "an await", ast.JoinedStr: "an f-string",
}  # fmt: skip


@dataclass(frozen=True)
class Truth:
    """Kleene's three values for n crystals.

    Args:
        true: Where it is true (n,).
        known: Where it is true or false (n,).
    """

    true: Bools
    known: Bools

    def __invert__(self) -> Truth:
        return Truth(self.known & ~self.true, self.known)

    def __and__(self, other: Truth) -> Truth:
        false = (self.known & ~self.true) | (other.known & ~other.true)
        return Truth(self.true & other.true, false | (self.known & other.known))

    def __or__(self, other: Truth) -> Truth:
        return ~(~self & ~other)


@dataclass(frozen=True)
class Rule:
    """A condition on the columns of a table.

    Args:
        text: As it was written.
        parts: The conditions that stand between its outermost ``and``.
    """

    text: str
    parts: tuple[ast.expr, ...]

    @classmethod
    def parse(cls, text: str) -> Rule:
        """Read a rule: names, numbers, texts, comparisons (also chained), ``and or not``, ``+ - * / % **``, ``in``.

        Raises:
            ConfigError: It is no such expression; says what it is and where.
        """
        if not text.strip():
            raise ConfigError("rule: is empty; expected a comparison such as hardness > 30")
        if len(text) > LONGEST:
            raise ConfigError(f"rule: {len(text)} characters, at most {LONGEST} are read")
        try:
            tree = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
            raise ConfigError(f"rule {text!r}: no expression: {_problem(text, error)}") from None
        _check(tree, text)
        parts = tree.values if isinstance(tree, ast.BoolOp) and isinstance(tree.op, ast.And) else [tree]
        return cls(text, tuple(parts))

    def __reduce__(self) -> tuple[Any, ...]:
        return Rule.parse, (self.text,)

    @property
    def names(self) -> list[str]:
        """Columns that it reads, in the order in which they come."""
        return _names(self.parts)

    def check(self, kinds: Mapping[str, str]) -> None:
        """Check that it fits a table.

        Args:
            kinds: Name of each column -> `NUMBER`, `TEXT` or `SET`.

        Raises:
            ConfigError: It names a column that is not there, or compares what can't be compared.
        """
        for name in self.names:
            if name not in kinds:
                raise ConfigError(f"rule {self.text!r}: {unknown(name, kinds, 'column')}")
        for part in self.parts:
            _check_kinds(part, kinds, self.text)

    def __call__(self, columns: Mapping[str, Column]) -> Truth:
        """Return where it is true, and where that is known."""
        found = [_truth(part, columns) for part in self.parts]
        whole = found[0]
        for truth in found[1:]:
            whole &= truth
        return whole

    def reasons(self, columns: Mapping[str, Column]) -> dict[int, str]:
        """Return for each row where it is not true the conditions that fail, with their numbers."""
        found: dict[int, list[str]] = {}
        for part in self.parts:
            truth = _truth(part, columns)
            names, text = _names([part]), ast.unparse(part)
            for row in np.flatnonzero(~truth.true).tolist():
                values = ", ".join(f"{name} {_shown(columns[name][row])}" for name in names)
                what = "fails" if truth.known[row] else "can't be told:"
                found.setdefault(row, []).append(f"{what} {text}" + (f" ({values})" if values else ""))
        return {row: "; ".join(texts) for row, texts in found.items()}


def _shown(value: Any) -> str:
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, str):
        return repr(value)
    if isinstance(value, Iterable):
        return "-".join(sorted(value))
    return "unknown" if value != value else f"{value:.5g}"


def _names(nodes: Iterable[ast.AST]) -> list[str]:
    return list(dict.fromkeys(n.id for node in nodes for n in ast.walk(node) if isinstance(n, ast.Name)))


def _problem(text: str, error: Exception) -> str:
    if not isinstance(error, SyntaxError):
        return "too deep or not readable"
    if "=" in text.replace("==", "").replace("<=", "").replace(">=", "").replace("!=", ""):
        return "an assignment (equality is written ==)"
    return f"{error.msg} (column {error.offset})"


def _check(tree: ast.expr, text: str) -> None:
    """Check that a tree holds only what is known here."""
    allowed = (ast.BoolOp, ast.Compare, ast.BinOp, ast.UnaryOp, ast.Name, ast.Constant, ast.List, ast.Tuple)
    marks = (ast.boolop, ast.cmpop, ast.operator, ast.unaryop, ast.expr_context)
    for node, depth in _walk(tree):
        if depth > DEEPEST:
            raise ConfigError(f"rule {text!r}: deeper than {DEEPEST} levels")
        if isinstance(node, marks):
            continue
        if not isinstance(node, allowed):
            what = _NAMES.get(type(node), type(node).__name__.lower())
            raise ConfigError(f"rule {text!r}: {what} is not allowed; expected a comparison such as hardness > 30")
        _check_node(node, text)
    if not _is_condition(tree):
        raise ConfigError(f"rule {text!r}: gives no yes or no; expected a comparison such as hardness > 30")


def _walk(tree: ast.AST) -> Iterator[tuple[ast.AST, int]]:
    waiting = [(tree, 1)]
    while waiting:
        node, depth = waiting.pop()
        yield node, depth
        waiting += [(child, depth + 1) for child in ast.iter_child_nodes(node)]


def _check_node(node: ast.AST, text: str) -> None:
    if isinstance(node, ast.Constant) and not isinstance(node.value, int | float | str):
        raise ConfigError(f"rule {text!r}: expected numbers and texts, got {node.value!r}")
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and abs(node.value) > _LARGEST:
        raise ConfigError(f"rule {text!r}: a number is larger than {_LARGEST:g}")
    if isinstance(node, ast.BinOp) and type(node.op) not in _ARITHMETIC:
        raise ConfigError(f"rule {text!r}: of operators, + - * / % ** are known")
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Invert):
        raise ConfigError(f"rule {text!r}: ~ is not allowed; write not")
    if isinstance(node, ast.Compare) and any(isinstance(op, ast.Is | ast.IsNot) for op in node.ops):
        raise ConfigError(f"rule {text!r}: 'is' is not allowed; write ==")
    if isinstance(node, ast.List | ast.Tuple) and not all(isinstance(entry, ast.Constant) for entry in node.elts):
        raise ConfigError(f"rule {text!r}: a list holds numbers and texts only")


def _is_condition(node: ast.AST) -> bool:
    is_not = isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)
    return is_not or isinstance(node, ast.BoolOp | ast.Compare | ast.Name)


def _check_kinds(node: ast.expr, kinds: Mapping[str, str], text: str) -> None:
    """Check conditions from above; arithmetic and bare names are of numbers."""
    if isinstance(node, ast.BoolOp):
        for value in node.values:
            _check_kinds(value, kinds, text)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        _check_kinds(node.operand, kinds, text)
    elif isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
        for op, left, right in zip(node.ops, sides, sides[1:], strict=False):
            _check_pair(op, _kind(left, kinds, text), _kind(right, kinds, text), text)
    elif _kind(node, kinds, text) != NUMBER or not isinstance(node, ast.Name):
        raise ConfigError(f"rule {text!r}: {ast.unparse(node)!r} is neither a comparison nor a column of yes and no")


def _check_pair(op: ast.cmpop, left: str, right: str, text: str) -> None:
    if isinstance(op, ast.In | ast.NotIn):
        if not (right == f"list of {left}s" or (left == TEXT and right == SET)):
            raise ConfigError(f"rule {text!r}: 'in' looks for a {left} in a {right}; expected a list, or elements")
        return
    if not left == right or left not in (NUMBER, TEXT):
        raise ConfigError(f"rule {text!r}: a {left} can't be compared with a {right}")
    if left == TEXT and not isinstance(op, ast.Eq | ast.NotEq):
        raise ConfigError(f"rule {text!r}: texts are compared by == and != only")


def _kind(node: ast.expr, kinds: Mapping[str, str], text: str) -> str:
    if isinstance(node, ast.Name):
        return kinds[node.id]
    if isinstance(node, ast.Constant):
        return TEXT if isinstance(node.value, str) else NUMBER
    if isinstance(node, ast.List | ast.Tuple):
        found = {_kind(entry, kinds, text) for entry in node.elts}
        if len(found) != 1:
            raise ConfigError(f"rule {text!r}: a list holds either numbers or texts, and at least one")
        return f"list of {found.pop()}s"
    if isinstance(node, ast.BinOp | ast.UnaryOp) and not _is_condition(node):
        sides = [node.left, node.right] if isinstance(node, ast.BinOp) else [node.operand]
        if all(_kind(side, kinds, text) == NUMBER for side in sides):
            return NUMBER
        raise ConfigError(f"rule {text!r}: {ast.unparse(node)!r} calculates with what is no number")
    raise ConfigError(f"rule {text!r}: {ast.unparse(node)!r} is a condition where a value is expected")


def _truth(node: ast.expr, columns: Mapping[str, Column]) -> Truth:
    if isinstance(node, ast.BoolOp):
        first, *rest = [_truth(value, columns) for value in node.values]
        for truth in rest:
            first = first & truth if isinstance(node.op, ast.And) else first | truth
        return first
    if isinstance(node, ast.UnaryOp):
        return ~_truth(node.operand, columns)
    if isinstance(node, ast.Compare):
        return _compared(node, columns)
    values = np.asarray(_value(node, columns), dtype=np.float64)
    return Truth(np.isfinite(values) & (values != 0), ~np.isnan(values))


def _compared(node: ast.Compare, columns: Mapping[str, Column]) -> Truth:
    size = len(next(iter(columns.values()))) if columns else 1
    whole = Truth(np.ones(size, dtype=np.bool_), np.ones(size, dtype=np.bool_))
    sides = [node.left, *node.comparators]
    for op, left, right in zip(node.ops, sides, sides[1:], strict=False):
        if isinstance(op, ast.In | ast.NotIn):
            truth = _contained(left, right, columns)
            whole &= ~truth if isinstance(op, ast.NotIn) else truth
            continue
        a, b = _value(left, columns), _value(right, columns)
        with np.errstate(invalid="ignore"):
            result = np.broadcast_to(np.asarray(_COMPARE[type(op)](a, b), dtype=np.bool_), size)
        known = np.broadcast_to(_known(a) & _known(b), size)
        whole &= Truth(result & known, known)
    return whole


def _contained(left: ast.expr, right: ast.expr, columns: Mapping[str, Column]) -> Truth:
    a = _value(left, columns)
    if isinstance(right, ast.Name):
        sets = columns[right.id]
        wanted = a if isinstance(a, np.ndarray) and a.ndim else [a] * len(sets)
        found = np.array([str(one) in each for one, each in zip(wanted, sets, strict=True)], dtype=np.bool_)
        return Truth(found, np.ones(len(sets), dtype=np.bool_))
    entries = [_value(entry, columns) for entry in right.elts] if isinstance(right, ast.List | ast.Tuple) else []
    size = len(next(iter(columns.values()))) if columns else 1
    result = np.zeros(size, dtype=np.bool_)
    for entry in entries:
        result = result | np.asarray(a == entry, dtype=np.bool_)
    known = np.broadcast_to(_known(a), size)
    return Truth(result & known, known)


def _known(values: Any) -> Any:
    array = np.asarray(values)
    return ~np.isnan(array) if array.dtype.kind == "f" else np.ones(array.shape, dtype=np.bool_)


def _value(node: ast.expr, columns: Mapping[str, Column]) -> Any:
    if isinstance(node, ast.Name):
        column = np.asarray(columns[node.id])
        return column if column.dtype.kind in "OUST" else column.astype(np.float64)
    if isinstance(node, ast.Constant):
        return np.float64(node.value) if isinstance(node.value, int | float) else node.value
    with np.errstate(all="ignore"):  # what can't be calculated is unknown
        if isinstance(node, ast.UnaryOp):
            value = _value(node.operand, columns)
            return -value if isinstance(node.op, ast.USub) else value
        if isinstance(node, ast.BinOp):
            return _ARITHMETIC[type(node.op)](_value(node.left, columns), _value(node.right, columns))
    raise ConfigError(f"rule: {ast.unparse(node)!r} is no value")  # refused by the check of kinds
