"""Strict reading of the YAML files that people write: policies, cards, configuration.

A field that isn't known is an error, never ignored: a misspelt ``longest`` must
not silently lift a limit.
"""

from __future__ import annotations

import base64
import ipaddress
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from tariq.errors import TariqError
from tariq.message import NAME

Check = Callable[[Any], Any]


class Wrong(Exception):
    """A value that can't be used: ``where`` in the file, and why."""

    def __init__(self, reason: str, where: str = "") -> None:
        self.reason, self.where = reason, where
        super().__init__(reason)

    def inside(self, field: str) -> Wrong:
        """Return the same, seen from one level further out."""
        return Wrong(self.reason, f"{field}.{self.where}" if self.where else field)


class _Loader(yaml.SafeLoader):
    """YAML without repeated keys: the second would silently win."""


def _mapping_once(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node)
        if key in seen:
            raise yaml.MarkedYAMLError(None, None, f"{key!r} twice", key_node.start_mark)
        seen.add(key)
    loader.flatten_mapping(node)
    return dict(loader.construct_mapping(node, deep=True))


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping_once)


def read(path: Path, error: type[TariqError], hint: str) -> Any:  # noqa: ANN401
    """Return what a YAML file holds; raise ``error`` if it can't be read or parsed."""
    try:
        return parse(path.read_text("utf-8"), str(path), error)
    except OSError as why:
        raise error(str(path), (why.strerror or str(why)).lower(), hint) from why
    except UnicodeDecodeError as why:
        raise error(str(path), "not utf-8 text", hint) from why


def parse(text: str, name: str, error: type[TariqError]) -> Any:  # noqa: ANN401
    """Return what a YAML text holds; raise ``error`` with line and column if it is malformed."""
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as why:
        mark = why.problem_mark
        where = f"{name}, line {mark.line + 1}, column {mark.column + 1}" if mark else name
        raise error(where, why.problem or "not yaml", "mend the line") from why
    except (yaml.YAMLError, ValueError, RecursionError, TypeError) as why:
        raise error(name, "not yaml", "mend the file") from why


def fields(spec: Mapping[str, Check], required: set[str] | None = None) -> Check:
    """Return a check of a mapping with exactly these fields, of which some may be left out."""
    needed = spec.keys() if required is None else required

    def check(value: Any) -> dict[str, Any]:  # noqa: ANN401
        if not isinstance(value, dict):
            raise Wrong("not a mapping")
        for name in value:
            if name not in spec:
                raise Wrong(f"unknown field (known are {', '.join(sorted(spec))})", str(name))
        for name in needed:
            if name not in value:
                raise Wrong("missing", name)
        return {name: _at(name, spec[name], item) for name, item in value.items()}

    return check


def mapping(key: Check, item: Check) -> Check:
    """Return a check of a mapping from names to things."""

    def check(value: Any) -> dict[Any, Any]:  # noqa: ANN401
        if not isinstance(value, dict):
            raise Wrong("not a mapping")
        return {_at(str(k), key, k): _at(str(k), item, v) for k, v in value.items()}

    return check


def listing(item: Check, least: int = 0) -> Check:
    """Return a check of a list."""

    def check(value: Any) -> tuple[Any, ...]:  # noqa: ANN401
        if not isinstance(value, list) or len(value) < least:
            raise Wrong("not a list" + (f" of at least {least}" if least else ""))
        return tuple(_at(str(at), item, each) for at, each in enumerate(value))

    return check


def _at(field: str, check: Check, value: Any) -> Any:  # noqa: ANN401
    try:
        return check(value)
    except Wrong as why:
        raise why.inside(field) from None


def whole(low: int, high: int) -> Check:
    """Return a check of a whole number."""

    def check(value: Any) -> int:  # noqa: ANN401
        if type(value) is not int or not low <= value <= high:
            raise Wrong(f"not a whole number from {low} to {high}")
        return value

    return check


def flag(value: Any) -> bool:  # noqa: ANN401
    """Check true or false."""
    if not isinstance(value, bool):
        raise Wrong("not true or false")
    return value


def one_of(*choices: str) -> Check:
    """Return a check of a closed list."""

    def check(value: Any) -> str:  # noqa: ANN401
        if value not in choices:
            raise Wrong(f"not one of {', '.join(choices)}")
        return str(value)

    return check


def text(value: Any) -> str:  # noqa: ANN401
    """Check a text that isn't empty."""
    if not isinstance(value, str) or not value.strip():
        raise Wrong("not a text")
    return value


def name(value: Any) -> str:  # noqa: ANN401
    """Check a name of a service, a task, an operator or a host's default."""
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise Wrong("not a name (a-z, 0-9, '_', '.', '-'; up to 32)")
    return value


def fingerprint(value: Any) -> str:  # noqa: ANN401
    """Check an OpenPGP fingerprint, v4 or v5; spaces are allowed."""
    digits = str(value).replace(" ", "").upper()
    if isinstance(value, str) and len(digits) in (40, 64) and not digits.strip("0123456789ABCDEF"):
        return digits
    raise Wrong("not a fingerprint (40 hex digits, in quotes)")


def address(value: Any) -> str:  # noqa: ANN401
    """Check an IP address."""
    try:
        return str(ipaddress.ip_address(value if isinstance(value, str) else ""))
    except ValueError:
        raise Wrong("not an ip address") from None


def base64_bytes(value: Any) -> bytes:  # noqa: ANN401
    """Check base64."""
    try:
        return base64.b64decode(value, validate=True)
    except (TypeError, ValueError):
        raise Wrong("not base64") from None
