"""What an operator asks and what a host answers: requests, receipts, bundles.

A *request* and a *receipt* are small JSON objects, strictly validated: unknown,
missing or repeated fields, floats and anything over ``MAX_JSON`` are refused.
A *bundle* is one request with the path that ties it to the root of a Merkle
tree and the operator's detached signature of that root, so that one secret-key
operation serves up to ``MAX_BATCH`` hosts (see ``docs/walkthrough.md``).

This module knows nothing of keys, pictures or sockets.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import ipaddress
import json
import re
import secrets
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, NamedTuple, NoReturn

from tariq.errors import MessageError

VERSION = 1
ID_BYTES = 16
MAX_JSON = 1024
"""Bytes of JSON that are looked at: nothing longer fits a packet."""
MAX_DEPTH = 6
MAX_BATCH = 1 << MAX_DEPTH
"""Requests that one signature serves: what a path of six hashes reaches."""
MAX_SECONDS = 86_400 * 366
_MAX_DETAIL = 200
MAX_VALUE = 256
"""Characters of a value of a task's parameter."""
NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,31}", re.ASCII)
"""What services, tasks and operators may be called."""

_LABEL = re.compile(r"[0-9a-f]{8}", re.ASCII)
_HASH_BYTES = 16
_SIGNED_PREFIX = b"tariq batch v1\n"
"""Keeps a signature of a batch from being one of anything else."""
_HEADER = struct.Struct("!BBHH")  # version, depth of the path, index, length of the request


class Action(StrEnum):
    """What a request asks for."""

    OPEN = "open"
    CLOSE = "close"
    RUN = "run"
    STATUS = "status"


class Code(StrEnum):
    """What a host says that it did. The list is closed."""

    OPENED = "opened"
    CLOSED = "closed"
    RAN = "ran"
    STATUS = "status"
    DENIED = "denied"
    UNKNOWN = "unknown"
    SKEW = "skew"
    ADDRESS = "address"
    REPLAY = "replay"
    FAILED = "failed"
    BUSY = "busy"


class State(StrEnum):
    """How a task's run stands: ``killed`` when its time was over, ``lost`` if nobody knows."""

    RUNNING = "running"
    ENDED = "ended"
    KILLED = "killed"
    LOST = "lost"


class TaskRun(NamedTuple):
    """One line about a run: its label, the task, how it stands, and its exit status if known."""

    label: str
    name: str
    state: State
    exit: int | None = None


def label(id_: bytes) -> str:
    """Return what a request's run is called: a hash, because receipts are sealed under the id."""
    return hashlib.sha256(b"tariq run" + id_).hexdigest()[:8]


@dataclass(frozen=True, slots=True)
class Request:
    """One operator's wish, for one host.

    ``id`` 16 random bytes · ``t`` Unix seconds · ``to`` the first 16 bytes of the
    host key's fingerprint · ``what`` names of services, or the one task ·
    ``seconds`` the lease asked for · ``src`` the client's address as it believes it ·
    ``cut`` connections on closed leases are to end too.
    """

    to: bytes
    do: Action
    t: int
    what: tuple[str, ...] = ()
    args: Mapping[str, str] = field(default_factory=dict)
    seconds: int | None = None
    src: str | None = None
    cut: bool = False
    id: bytes = field(default_factory=lambda: secrets.token_bytes(ID_BYTES))

    def encode(self) -> bytes:
        """Return compact JSON."""
        obj: dict[str, object] = {
            "v": VERSION,
            "id": to_b64(self.id),
            "t": self.t,
            "to": to_b64(self.to),
            "do": self.do.value,
        }
        optional = {"what": list(self.what), "args": dict(self.args)}
        obj |= {name: value for name, value in optional.items() if value}
        obj |= {} if self.seconds is None else {"for": self.seconds}
        obj |= {} if self.src is None else {"src": self.src}
        obj |= {"cut": True} if self.cut else {}
        return _dump(obj)

    @classmethod
    def decode(cls, raw: bytes) -> Request:
        """Read JSON; raise MessageError where it isn't exactly a request."""
        obj = _load(raw, _REQUEST_FIELDS, required={"v", "id", "t", "to", "do"})
        return cls(
            id=obj["id"],
            t=obj["t"],
            to=obj["to"],
            do=obj["do"],
            what=obj.get("what", ()),
            args=obj.get("args", {}),
            seconds=obj.get("for"),
            src=obj.get("src"),
            cut=obj.get("cut", False),
        )


@dataclass(frozen=True, slots=True)
class Receipt:
    """A host's answer to the request ``re``; ``t`` and ``leases`` are Unix seconds.

    ``keys`` tells which operators' keys the host trusts: ``openpgp.keys_digest`` of them.
    Of a task: ``task`` is the run's label, ``exit`` its status (negative: by a signal),
    ``out`` the start of its output, ``size`` how many bytes of that the host keeps and
    ``sum`` the first 16 bytes of their SHA-256. ``tasks``: the operator's last runs.
    """

    re: bytes
    t: int
    ok: bool
    code: Code
    seen: str
    policy: int
    leases: Mapping[str, int] = field(default_factory=dict)
    keys: bytes | None = None
    exit: int | None = None
    out: str | None = None
    task: str | None = None
    state: State | None = None
    size: int | None = None
    sum: bytes | None = None
    tasks: tuple[TaskRun, ...] = ()
    detail: str = ""

    def encode(self) -> bytes:
        """Return compact JSON."""
        obj: dict[str, object] = {
            "v": VERSION,
            "re": to_b64(self.re),
            "t": self.t,
            "ok": self.ok,
            "code": self.code.value,
            "seen": self.seen,
            "policy": self.policy,
        }
        detail = self.detail[:_MAX_DETAIL]
        detail = "".join(char if char.isprintable() else " " for char in detail)
        optional = {"leases": dict(self.leases), "detail": detail}
        obj |= {name: value for name, value in optional.items() if value}
        obj |= {} if self.keys is None else {"keys": to_b64(self.keys)}
        obj |= {} if self.exit is None else {"exit": self.exit}
        of_task = {"out": self.out, "task": self.task, "state": self.state, "size": self.size}
        obj |= {name: value for name, value in of_task.items() if value is not None}
        obj |= {} if self.sum is None else {"sum": to_b64(self.sum)}
        obj |= {"tasks": [list(each) for each in self.tasks]} if self.tasks else {}
        return _dump(obj)

    def fitted(self, room: int) -> Receipt:
        """Return what of it takes ``room`` bytes: fewer runs first, then less text."""
        over = len(self.encode()) - room
        if over <= 0 or not (self.tasks or self.out or self.detail):
            return self
        if self.tasks:
            return replace(self, tasks=self.tasks[:-1]).fitted(room)
        if self.out:
            return replace(self, out=_shorter(self.out, over)).fitted(room)
        return replace(self, detail=_shorter(self.detail, over)).fitted(room)

    @classmethod
    def decode(cls, raw: bytes) -> Receipt:
        """Read JSON; raise MessageError where it isn't exactly a receipt."""
        required = {"v", "re", "t", "ok", "code", "seen", "policy"}
        obj = _load(raw, _RECEIPT_FIELDS, required=required)
        del obj["v"]
        return cls(**obj)


def _shorter(text: str, by: int) -> str:
    """Cut a text by at least one character, and by so many bytes of JSON."""
    while by > 0 and text:
        by -= len(_dump({"": text[-1]})) - len(_dump({"": ""}))
        text = text[:-1]
    return text


# --- Merkle batches -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Batch:
    """The Merkle tree over the requests of one command.

    Leaf SHA-256(0x00 ‖ request), node SHA-256(0x01 ‖ left ‖ right), both cut to 16
    bytes; the two prefixes keep a node from passing as a leaf (RFC 9162, 2.1).
    Missing leaves are zero bytes, which no request hashes to.
    """

    requests: tuple[bytes, ...]
    levels: tuple[tuple[bytes, ...], ...]

    @classmethod
    def of(cls, requests: Sequence[bytes]) -> Batch:
        """Build the tree over 1 to ``MAX_BATCH`` encoded requests."""
        if not 1 <= len(requests) <= MAX_BATCH:
            raise ValueError(f"a batch has 1 to {MAX_BATCH} requests, not {len(requests)}")
        depth = (len(requests) - 1).bit_length()
        row = [_leaf(request) for request in requests]
        row += [bytes(_HASH_BYTES)] * ((1 << depth) - len(row))
        levels = [tuple(row)]
        while len(row) > 1:
            row = [_node(row[i], row[i + 1]) for i in range(0, len(row), 2)]
            levels.append(tuple(row))
        return cls(tuple(requests), tuple(levels))

    @property
    def to_sign(self) -> bytes:
        """What the operator's key signs."""
        return _SIGNED_PREFIX + self.levels[-1][0]

    def bundle(self, index: int, signature: bytes) -> Bundle:
        """Return the bundle of one request of this batch."""
        path = tuple(level[(index >> height) ^ 1] for height, level in enumerate(self.levels[:-1]))
        return Bundle(self.requests[index], index, path, signature)


@dataclass(frozen=True, slots=True)
class Bundle:
    """One request, the path to its batch's root, and the signature of that root."""

    request: bytes
    index: int
    path: tuple[bytes, ...]
    signature: bytes

    @property
    def signed(self) -> bytes:
        """The bytes that the signature must be of."""
        digest = _leaf(self.request)
        for height, sibling in enumerate(self.path):
            right = self.index >> height & 1
            digest = _node(sibling, digest) if right else _node(digest, sibling)
        return _SIGNED_PREFIX + digest

    def encode(self) -> bytes:
        """Return header, request, path and signature."""
        header = _HEADER.pack(VERSION, len(self.path), self.index, len(self.request))
        return header + self.request + b"".join(self.path) + self.signature

    @classmethod
    def decode(cls, raw: bytes) -> Bundle:
        """Read what ``encode`` wrote; raise MessageError for anything else."""
        if len(raw) < _HEADER.size:
            _refuse("bundle", "cut short")
        version, depth, index, length = _HEADER.unpack_from(raw)
        if version != VERSION:
            _refuse("bundle", f"version {version}")
        if depth > MAX_DEPTH or index >> depth:
            _refuse("bundle", "path too long")
        path_at = _HEADER.size + length
        signature_at = path_at + depth * _HASH_BYTES
        if not 0 < length <= MAX_JSON or signature_at >= len(raw):
            _refuse("bundle", "cut short")
        path = tuple(raw[at : at + _HASH_BYTES] for at in range(path_at, signature_at, _HASH_BYTES))
        return cls(raw[_HEADER.size : path_at], index, path, raw[signature_at:])


def _leaf(request: bytes) -> bytes:
    return hashlib.sha256(b"\0" + request).digest()[:_HASH_BYTES]


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\1" + left + right).digest()[:_HASH_BYTES]


# --- strict JSON ----------------------------------------------------------------------


def to_b64(raw: bytes) -> str:
    """Base64url without padding (RFC 4648, 5)."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")


def _dump(obj: Mapping[str, object]) -> bytes:
    return json.dumps(obj, separators=(",", ":"), ensure_ascii=False).encode()


def _refuse(thing: str, reason: str) -> NoReturn:
    raise MessageError(thing, reason)


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    obj = dict(pairs)
    if len(obj) != len(pairs):
        _refuse("json", "a repeated field")
    return obj


def _number(digits: str) -> int:
    if len(digits) > 15:  # far beyond any field, and within what every JSON reader holds
        _refuse("json", "a huge number")
    return int(digits)


def _no_float(text: str) -> NoReturn:
    _refuse("json", f"a number that isn't whole: {text[:16]}")


def _load(
    raw: bytes, fields: Mapping[str, Callable[[Any], Any]], required: set[str]
) -> dict[str, Any]:
    if len(raw) > MAX_JSON:
        _refuse("json", "too long")
    try:
        obj = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_pairs,
            parse_int=_number,
            parse_float=_no_float,
            parse_constant=_no_float,
        )
    except (ValueError, RecursionError) as why:
        raise MessageError("json", "malformed") from why
    if not isinstance(obj, dict):
        _refuse("json", "not an object")
    if missing := required - obj.keys():
        _refuse("json", f"without {min(missing)!r}")
    if unknown := obj.keys() - fields.keys():
        _refuse("json", f"unknown field {min(unknown)[:16]!r}")
    return {name: fields[name](value) for name, value in obj.items()}


def _whole(low: int, high: int) -> Callable[[Any], int]:
    def check(value: Any) -> int:  # noqa: ANN401 - JSON is anything until it is checked
        if type(value) is not int or not low <= value <= high:
            _refuse("json", f"not a whole number from {low} to {high}")
        return value

    return check


def _b64(value: Any) -> bytes:  # noqa: ANN401
    try:
        raw = base64.b64decode(value + "==", altchars=b"-_", validate=True)
    except (TypeError, ValueError, binascii.Error) as why:
        raise MessageError("json", "not base64url") from why
    if len(raw) != ID_BYTES or to_b64(raw) != value:  # one spelling only
        _refuse("json", f"not {ID_BYTES} bytes")
    return raw


def _text(limit: int) -> Callable[[Any], str]:
    def check(value: Any) -> str:  # noqa: ANN401
        if type(value) is not str or len(value) > limit:
            _refuse("json", f"not a text of up to {limit} characters")
        if any(0xD800 <= ord(char) <= 0xDFFF for char in value):  # JSON can escape half a pair
            _refuse("json", "half a character")
        return value

    return check


def _line(limit: int) -> Callable[[Any], str]:
    """Return a check of one line that a terminal may show: a host may lie in colours."""

    def check(value: Any) -> str:  # noqa: ANN401
        if not _text(limit)(value).isprintable():
            _refuse("json", "not one printable line")
        return str(value)

    return check


def _name(value: Any) -> str:  # noqa: ANN401
    if type(value) is not str or not NAME.fullmatch(value):
        _refuse("json", "not a name")
    return value


def _names(value: Any) -> tuple[str, ...]:  # noqa: ANN401
    if type(value) is not list or len(value) > 32:
        _refuse("json", "not a list of names")
    return tuple(_name(name) for name in value)


def _map(check: Callable[[Any], Any]) -> Callable[[Any], dict[str, Any]]:
    def checked(value: Any) -> dict[str, Any]:  # noqa: ANN401
        if type(value) is not dict or len(value) > 32:
            _refuse("json", "not a mapping of names")
        return {_name(key): check(item) for key, item in value.items()}

    return checked


def _flag(value: Any) -> bool:  # noqa: ANN401
    if type(value) is not bool:
        _refuse("json", "not true or false")
    return value


def _address(value: Any) -> str:  # noqa: ANN401
    try:
        address = ipaddress.ip_address(_text(64)(value))
    except ValueError as why:
        raise MessageError("json", "not an address") from why
    if "%" in str(address):  # a zone may hold any text (RFC 4007, 11), and means nothing elsewhere
        _refuse("json", "an address with a zone")
    return str(address)


def _one_of(kind: type[StrEnum]) -> Callable[[Any], StrEnum]:
    def check(value: Any) -> StrEnum:  # noqa: ANN401
        if type(value) is not str or value not in kind.__members__.values():
            _refuse("json", f"not one of {', '.join(kind)}")
        return kind(value)

    return check


def _label(value: Any) -> str:  # noqa: ANN401
    if type(value) is not str or not _LABEL.fullmatch(value):
        _refuse("json", "not a label of a run")
    return value


def _runs(value: Any) -> tuple[TaskRun, ...]:  # noqa: ANN401
    if type(value) is not list or len(value) > 32:
        _refuse("json", "not a list of runs")
    return tuple(_run(each) for each in value)


def _run(value: Any) -> TaskRun:  # noqa: ANN401
    if type(value) is not list or len(value) != 4:
        _refuse("json", "not a run")
    name, task, state, status = value
    checked = None if status is None else _EXIT(status)
    return TaskRun(_label(name), _name(task), State(_one_of(State)(state)), checked)


_EXIT = _whole(-255, 255)
_TIME = _whole(0, 1 << 40)
_REQUEST_FIELDS: dict[str, Callable[[Any], Any]] = {
    "v": _whole(VERSION, VERSION),
    "id": _b64,
    "t": _TIME,
    "to": _b64,
    "do": _one_of(Action),
    "what": _names,
    "args": _map(_text(MAX_VALUE)),
    "for": _whole(1, MAX_SECONDS),
    "src": _address,
    "cut": _flag,
}
_RECEIPT_FIELDS: dict[str, Callable[[Any], Any]] = {
    "v": _whole(VERSION, VERSION),
    "re": _b64,
    "t": _TIME,
    "ok": _flag,
    "code": _one_of(Code),
    "seen": _address,
    "policy": _whole(1, 1 << 31),
    "leases": _map(_TIME),
    "keys": _b64,
    "exit": _EXIT,
    "out": _text(MAX_JSON),
    "task": _label,
    "state": _one_of(State),
    "size": _whole(0, 1 << 40),
    "sum": _b64,
    "tasks": _runs,
    "detail": _line(_MAX_DETAIL),
}
