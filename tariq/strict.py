"""Strict reading of the YAML files that people write: policies, cards, configuration.

A field that isn't known is an error, never ignored: a misspelt ``longest`` must
not silently lift a limit.
"""

from __future__ import annotations

import base64
import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from tariq.errors import TariqError
from tariq.message import NAME

Check = Callable[[Any], Any]


# PyYAML lets these out of tags on values that don't fit them: "!!bool x", "!!timestamp x"
_CAUSES = (
    yaml.YAMLError,
    ValueError,
    RecursionError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
)


class Wrong(Exception):
    """Values that can't be used: ``where`` in the file and why; ``all`` has every one.

    ``rest`` is what was good beside them, with None for what wasn't, so that it can be looked at.
    """

    def __init__(self, reason: str, where: str = "") -> None:
        self.reason, self.where = reason, where
        self.all: list[Wrong] = [self]
        self.rest: Any = None
        super().__init__(reason)

    @classmethod
    def of(cls, several: list[Wrong], rest: Any = None) -> Wrong:  # noqa: ANN401
        """Return one that stands for several; it tells of the first."""
        first = cls(several[0].reason, several[0].where)
        first.all, first.rest = several, rest
        return first

    def inside(self, field: str) -> list[Wrong]:
        """Return all of them, as seen from one level further out."""
        return [
            Wrong(each.reason, f"{field}.{each.where}" if each.where else field)
            for each in self.all
        ]


_TAG = "tag:yaml.org,2002:"
_WHOLE = re.compile(r"^-?(?:0|[1-9][0-9]{0,17}|0x[0-9A-Fa-f]{1,16})$")
"""Of YAML 1.1's whole numbers those that nobody misreads: there, 022 is 18 and 7:23 is 443."""


class Loader(yaml.SafeLoader):
    """YAML without repeated keys, of which the second would silently win.

    What only YAML 1.1 takes for a whole number is text, as it stands.
    """

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:  # noqa: ANN401
        """Say where it is that a value doesn't fit its tag."""
        try:
            return super().construct_object(node, deep)
        except (yaml.YAMLError, RecursionError):
            raise
        except _CAUSES as why:
            reason = f"not a value of {node.tag.replace(_TAG, '!!')}"
            raise yaml.MarkedYAMLError(None, None, reason, node.start_mark) from why


def _day(loader: Loader, node: yaml.ScalarNode) -> Any:  # noqa: ANN401
    """Leave a day that no calendar has to the check, which says what it wants."""
    try:
        return loader.construct_yaml_timestamp(node)
    except ValueError:
        return node.value


def _mapping_once(loader: Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            reason = "a name that isn't text; what begins with '{' or '[' needs quotes"
            raise yaml.MarkedYAMLError(None, None, reason, key_node.start_mark)
        key = loader.construct_object(key_node)
        if key in seen:
            raise yaml.MarkedYAMLError(None, None, f"{key!r} twice", key_node.start_mark)
        seen.add(key)
    loader.flatten_mapping(node)
    return dict(loader.construct_mapping(node, deep=True))


Loader.yaml_implicit_resolvers = {
    first: [each for each in resolvers if each[0] != f"{_TAG}int"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver(f"{_TAG}int", _WHOLE, list("-0123456789"))
Loader.add_constructor(f"{_TAG}timestamp", _day)
Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping_once)


def read(path: Path, error: type[TariqError], hint: str) -> Any:  # noqa: ANN401
    """Return what a YAML file holds; raise ``error`` if it can't be read or parsed."""
    return parse(contents(path, error, hint), str(path), error)


def contents(path: Path, error: type[TariqError], hint: str) -> str:
    """Return the text of a file; raise ``error`` if it can't be read."""
    try:
        return path.read_text("utf-8")
    except OSError as why:
        raise error(str(path), (why.strerror or str(why)).lower(), hint) from why
    except UnicodeDecodeError as why:
        line = why.object.count(b"\n", 0, why.start) + 1
        raise error(f"{path}, line {line}", "not utf-8 text", "save it as utf-8") from why


def parse(text: str, name: str, error: type[TariqError], loader: type[Loader] = Loader) -> Any:  # noqa: ANN401
    """Return what a YAML text holds; raise ``error`` with line and column if it is malformed."""
    try:
        return yaml.load(text, loader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as why:
        mark = why.problem_mark
        where = f"{name}, line {mark.line + 1}, column {mark.column + 1}" if mark else name
        raise error(where, why.problem or "not yaml", "mend the line") from why
    except yaml.reader.ReaderError as why:
        line = text.count("\n", 0, why.position) + 1
        column = why.position - text.rfind("\n", 0, why.position)
        where = f"{name}, line {line}, column {column}"
        raise error(where, f"the character {why.character:#04x}", "take it out") from why
    except _CAUSES as why:
        raise error(name, "not yaml", "mend the file") from why


def fields(spec: Mapping[str, Check], required: set[str] | None = None) -> Check:
    """Return a check of a mapping with exactly these fields, of which some may be left out."""
    needed = spec.keys() if required is None else required

    def check(value: Any) -> dict[str, Any]:  # noqa: ANN401
        if not isinstance(value, dict):
            raise Wrong("not a mapping")
        known = f"unknown field (known are {', '.join(sorted(spec)) or 'none'})"
        wrong = [Wrong(known, str(name)) for name in value if name not in spec]
        wrong += [Wrong("missing", name) for name in sorted(needed) if name not in value]
        return _each(
            ((name, spec[name], item) for name, item in value.items() if name in spec), wrong
        )

    return check


def mapping(key: Check, item: Check) -> Check:
    """Return a check of a mapping from names to things."""

    def check(value: Any) -> dict[Any, Any]:  # noqa: ANN401
        if not isinstance(value, dict):
            raise Wrong("not a mapping")
        wrong: list[Wrong] = []
        for name in value:
            try:
                key(name)
            except Wrong as why:
                wrong += why.inside(str(name))
        return _each(((name, item, each) for name, each in value.items()), wrong)

    return check


def listing(item: Check, least: int = 0) -> Check:
    """Return a check of a list."""

    def check(value: Any) -> tuple[Any, ...]:  # noqa: ANN401
        if not isinstance(value, list) or len(value) < least:
            raise Wrong("not a list" + (f" of at least {least}" if least else ""))
        try:
            return tuple(_each(((at, item, each) for at, each in enumerate(value)), []).values())
        except Wrong as why:
            why.rest = tuple(why.rest.values())
            raise

    return check


def _each(items: Iterable[tuple[Any, Check, Any]], wrong: list[Wrong]) -> dict[Any, Any]:
    """Check every item, and raise all that is wrong at once."""
    checked = {}
    for name, check, value in items:
        try:
            checked[name] = check(value)
        except Wrong as why:
            wrong += why.inside(str(name))
            checked[name] = why.rest
    if wrong:
        raise Wrong.of(wrong, checked)
    return checked


class Places:
    """Finds the line and column of what a path such as ``operators.alice.longest`` names."""

    def __init__(self, path: Path) -> None:
        self._name = str(path)
        try:
            self._root = yaml.compose(path.read_text("utf-8"), Loader)
        except (OSError, yaml.YAMLError):
            self._root = None

    def tell(self, where: str) -> str:
        """Return ``FILE, line 3, column 5: PATH``; of a missing field, where it belongs."""
        mark = self._mark(where)
        line = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        return f"{self._name}{line}: {where}" if where else f"{self._name}{line}"

    def _mark(self, where: str) -> yaml.Mark | None:
        node, rest = self._root, where
        mark = node.start_mark if node is not None else None
        while rest and node is not None:
            found = _child(node, rest)
            if found is None:
                break
            mark, node, rest = found
        return mark


def _child(node: yaml.Node, path: str) -> tuple[yaml.Mark, yaml.Node, str] | None:
    """Return mark, node and the rest of the path; names themselves may have full stops."""
    pairs: Iterable[tuple[str, yaml.Mark, yaml.Node]] = ()
    if isinstance(node, yaml.MappingNode):
        pairs = ((_spelt(key), key.start_mark, value) for key, value in node.value)
    elif isinstance(node, yaml.SequenceNode):
        pairs = ((str(at), item.start_mark, item) for at, item in enumerate(node.value))
    for name, mark, child in pairs:
        if path == name or path.startswith(f"{name}."):
            return mark, child, path[len(name) + 1 :]
    return None


def _spelt(key: yaml.Node) -> str:
    """Return a name as it is in a path: ``no`` is ``False`` there, as it was read."""
    try:
        return str(Loader("").construct_object(key))
    except yaml.YAMLError:
        return str(key.value)


def whole(low: int, high: int, unit: str = "") -> Check:
    """Return a check of a whole number."""
    wanted = f"a whole number{unit and f' of {unit}'} from {low} to {high}"
    wanted = wanted if low < high else str(low)

    def check(value: Any) -> int:  # noqa: ANN401
        if type(value) is int and low <= value <= high:
            return value
        digits = isinstance(value, str) and value[:1].isdigit()
        raise Wrong(f"not {wanted}" + (", digits only and no quotes" if digits else ""))

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
        odd = "" if isinstance(value, str | list | dict) else f"; yaml reads it as {value}"
        odd = odd and f"{odd}; put it in quotes"
        raise Wrong(f"not a name (a-z, 0-9, '_', '.', '-'; up to 32){odd}")
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
