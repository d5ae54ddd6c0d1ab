"""Strict models of settings: read from YAML, overridden from the command line, written back whole."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from cgnn.errors import ConfigError, nearest
from cgnn.yaml_text import Dumper, parse_yaml

M = TypeVar("M", bound=BaseModel)


class Strict(BaseModel):
    """Settings without unknown keys, silent conversions or numbers that are not finite; never changed in place."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def load_as(model: type[M], path: str | Path, overrides: Iterable[str] = ()) -> M:
    """Read a YAML file as settings of a strict model, and apply overrides such as ``model.depth=8``.

    Raises:
        ConfigError: No such file, no YAML, an unknown key, a wrong type or an impossible pair;
            the message holds the dotted path and the nearest spelling.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: could not be read: {getattr(error, 'strerror', None) or error}") from None
    return build_as(model, parse_yaml(text, str(path)), overrides, str(path))


def build_as(model: type[M], values: Any, overrides: Iterable[str] = (), source: str = "settings") -> M:
    """Return checked settings of any strict model from plain values."""
    if not isinstance(values, Mapping):
        keys = " and ".join(map(repr, list(model.model_fields)[:2]))
        raise ConfigError(f"{source}: expected keys such as {keys}, got {type(values).__name__}")
    tree = _plain(values)
    for override in overrides:
        _apply(tree, override)
    try:
        return model.model_validate(_tuples(tree))
    except ValidationError as error:
        raise ConfigError("\n".join(f"{source}: {line}" for line in _explain(error, model))) from None


def dump(config: BaseModel) -> str:
    """Return settings as YAML that `load_as` reads back to equal ones."""
    return yaml.dump(config.model_dump(mode="json"), Dumper=Dumper, sort_keys=False, allow_unicode=True)


def differences(old: BaseModel, new: BaseModel) -> dict[str, tuple[Any, Any]]:
    """Return the dotted keys in which two settings differ, with both values."""
    first, second = _flat(old.model_dump(mode="json")), _flat(new.model_dump(mode="json"))
    return {
        key: (first.get(key), second.get(key)) for key in sorted({*first, *second}) if first.get(key) != second.get(key)
    }


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        pairs: Iterable[tuple[Any, Any]] = value.items()
    elif isinstance(value, list) and any(isinstance(entry, dict) for entry in value):
        pairs = enumerate(value)
    else:
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, entry in pairs:
        flat.update(_flat(entry, f"{prefix}.{key}" if prefix else str(key)))
    return flat


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _tuples(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return tuple(_tuples(entry) for entry in value)
    return value


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r}: expected key=value, such as model.depth=8")
    value = parse_yaml(text, f"override {key}") if text else None
    *parents, last = key.strip().split(".")
    node: Any = tree
    for depth, parent in enumerate(parents):
        node = _child(node, parent, ".".join(parents[: depth + 1]))
    if isinstance(node, list):
        node[_position(node, last, key)] = value
    else:
        node[last] = value


def _child(node: Any, name: str, path: str) -> Any:
    if isinstance(node, dict) and node.get(name) is None:  # a section that is not there, or left out by null
        node[name] = {}
    child = node[_position(node, name, path)] if isinstance(node, list) else node[name]
    if not isinstance(child, dict | list):
        raise ConfigError(f"override: {path} is a single value and has no keys below it")
    return child


def _position(node: list[Any], name: str, path: str) -> int:
    if not name.isdigit() or int(name) >= len(node):
        raise ConfigError(f"override: {path}: expected a number from 0 to {len(node) - 1}, got {name!r}")
    return int(name)


_TEXT, _LIST = "str", "tuple[str, ...]"
"""How pydantic names the two kinds of value that a setting such as ``data.path`` may have."""
_SINGLE = (str, int, float, type(None))


def _explain(error: ValidationError, model: type[BaseModel]) -> Iterable[str]:
    problems = error.errors()
    for problem in problems:
        if problem["type"] == "too_short" and len(problems) > 1 and _LIST not in problem["loc"]:
            continue  # follows from an entry that is itself wrong
        if problem["loc"][-1:] == (_LIST,) and isinstance(problem["input"], _SINGLE):
            continue  # said once already, as the text that it might have been
        path = ".".join(str(part) for part in problem["loc"] if part not in (_LIST, _TEXT))
        if _TEXT in problem["loc"] and not isinstance(problem["input"], _SINGLE):
            continue  # a list, in which something else is wrong
        if problem["type"] == "extra_forbidden":
            known = _known_keys(problem["loc"][:-1], model)
            guess = nearest(str(problem["loc"][-1]), known)
            hint = f"; did you mean {guess!r}?" if guess else ""
            yield f"{path}: unknown key{hint} (known: {', '.join(known)})"
        elif problem["type"] == "missing":
            yield f"{path}: missing"
        else:
            message = problem["msg"].removeprefix("Value error, ").replace("valid tuple", "list")
            message += " or a list of strings" if _TEXT in problem["loc"] else ""
            got = "" if isinstance(problem["input"], dict | BaseModel) else f", got {problem['input']!r}"
            yield f"{path or 'settings'}: {message}{got}"


def _known_keys(path: tuple[int | str, ...], model: type[BaseModel]) -> list[str]:
    """Return the keys at a place of the settings; where one of several kinds may stand, the place names it."""
    kinds = [model]
    for part in path:
        found = [kind.model_fields[part].annotation for kind in kinds if part in kind.model_fields]
        if found:
            kinds = [kind for annotation in found for kind in _models(annotation)]
        elif isinstance(part, str):
            kinds = [kind for kind in kinds if part in get_args(kind.model_fields["kind"].annotation)]
    return [key for kind in kinds for key in kind.model_fields]


def _models(annotation: Any) -> list[type[BaseModel]]:
    """Return the models with keys that a type is made of, such as a section that may be left out."""
    if hasattr(annotation, "model_fields"):
        return [annotation]
    return [kind for part in get_args(annotation) for kind in _models(part)]
