"""Knocking: one signature, then every host at once, each ending in one outcome."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from enum import StrEnum

from tariq import openpgp, picture
from tariq.client.card import Card
from tariq.errors import MessageError, TariqError
from tariq.message import MAX_BATCH, Action, Batch, Bundle, Receipt, Request, State, to_b64
from tariq.picture import Direction
from tariq.transport.base import TRANSPORTS, Fate, NoAnswer, Transport

TRIES = 3
SECONDS_PER_TRY = 0.7
"""Less than the second after which the kernel resends a SYN, without its data."""
_AT_ONCE = 16


class Ending(StrEnum):
    """How a knock ended, as the client can know it."""

    YES = "yes"
    NO = "no"
    FAILED = "failed"
    RUNNING = "running"
    SILENT = "silent"
    UNREACHABLE = "unreachable"
    REFUSED = "refused"
    FORGED = "forged"
    ERROR = "error"


REASONS = {
    Ending.SILENT: "no answer: down, not knockable, clocks apart, or your key isn't trusted there",
    Ending.UNREACHABLE: "no route to the host",
    Ending.REFUSED: "the host's kernel refused: no agent guards the knock port",
    Ending.FORGED: "an answer came, but not one that this host signed",
}
_FATES = {
    Fate.SILENT: Ending.SILENT,
    Fate.UNREACHABLE: Ending.UNREACHABLE,
    Fate.REFUSED: Ending.REFUSED,
}


@dataclass(frozen=True, slots=True)
class Wish:
    """What one command asks of every host."""

    do: Action
    what: tuple[str, ...] = ()
    seconds: int | None = None
    args: Mapping[str, str] = field(default_factory=dict)
    cut: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one host's knock."""

    host: str
    ending: Ending
    address: str = ""
    receipt: Receipt | None = None
    reason: str = ""
    milliseconds: int = 0

    @property
    def ok(self) -> bool:
        """Whether the host said yes, and its task, if one was asked for, ended well."""
        return self.ending is Ending.YES


@dataclass(frozen=True, slots=True)
class Target:
    """One host, how to get there, and the address that it must see, if one is named."""

    card: Card
    addresses: tuple[str, ...]
    transport: str
    source: str | None = None


def knock_all(
    targets: Sequence[Target],
    wish: Wish,
    key: openpgp.OperatorKey,
    progress: Callable[[Outcome], None] = lambda _: None,
) -> list[Outcome]:
    """Knock every host once and return outcomes in the order of the targets.

    Signs one Merkle root per 64 hosts. Raises KeyUnusableError; everything that
    goes wrong with one host is that host's outcome.
    """
    with openpgp.CardRing() as ring:
        bundles = _sign(targets, wish, key)
        for target in targets:
            ring.add(target.card.fingerprint, target.card.public_key)
        if len(targets) == 1:
            return [_knock(targets[0], bundles[0], ring)]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            jobs = {
                pool.submit(_knock, target, bundle, ring): at
                for at, (target, bundle) in enumerate(zip(targets, bundles, strict=True))
            }
            outcomes: dict[int, Outcome] = {}
            for job in as_completed(jobs):
                outcomes[jobs[job]] = job.result()
                progress(job.result())
        return [outcomes[at] for at in range(len(targets))]


def _sign(targets: Sequence[Target], wish: Wish, key: openpgp.OperatorKey) -> list[Bundle]:
    bundles = []
    for start in range(0, len(targets), MAX_BATCH):
        batch = Batch.of([_request(each, wish) for each in targets[start : start + MAX_BATCH]])
        signature = key.sign(batch.to_sign)
        bundles += [batch.bundle(index, signature) for index in range(len(batch.requests))]
    return bundles


def _request(target: Target, wish: Wish) -> bytes:
    card = target.card
    wants_service = wish.do in (Action.OPEN, Action.CLOSE) and not wish.what
    default = (card.default_service,) if wants_service and card.default_service else ()
    return Request(
        to=openpgp.short(card.fingerprint),
        do=wish.do,
        t=int(time.time()),
        what=wish.what or default,
        args=wish.args,
        seconds=wish.seconds,
        src=target.source,
        cut=wish.cut,
    ).encode()


def _knock(target: Target, bundle: Bundle, ring: openpgp.CardRing) -> Outcome:
    """Knock one host; every failure becomes an outcome."""
    card = target.card
    started = time.monotonic()
    address = ""
    try:
        sealed = ring.seal(card.fingerprint, bundle.encode())
        payload = picture.wrap(sealed, card.knock_key, Direction.TO_HOST, time.time())
        address, answer = _send(target, payload)
        receipt = _open(card, bundle, answer, ring)
    except NoAnswer as why:
        ending = _FATES[why.fate]
        return Outcome(card.name, ending, address, reason=REASONS[ending])
    except MessageError:
        return Outcome(card.name, Ending.FORGED, address, reason=REASONS[Ending.FORGED])
    except TariqError as why:
        return Outcome(card.name, Ending.ERROR, address, reason=str(why))
    ending = _ending(receipt)
    took = round(1000 * (time.monotonic() - started))
    return Outcome(card.name, ending, address, receipt, receipt.detail, took)


def _ending(receipt: Receipt) -> Ending:
    if not receipt.ok:
        return Ending.NO
    if receipt.state is State.RUNNING:
        return Ending.RUNNING
    return Ending.YES if not receipt.exit else Ending.FAILED


def _send(target: Target, payload: bytes) -> tuple[str, bytes]:
    """Try the host's addresses until one can be reached; return it and the answer."""
    transport, port = TRANSPORTS[target.transport](), target.card.port
    *others, last = target.addresses
    for address in others:
        try:
            return address, _try(transport, address, port, payload)
        except NoAnswer as why:
            if why.fate is not Fate.UNREACHABLE:
                raise
    return last, _try(transport, last, port, payload)


def _try(transport: Transport, address: str, port: int, payload: bytes) -> bytes:
    """Send the same bytes up to ``TRIES`` times, on a new socket each."""
    for left in reversed(range(TRIES)):
        try:
            return transport.exchange(address, port, payload, SECONDS_PER_TRY)
        except NoAnswer as why:
            if why.fate is Fate.UNREACHABLE or left == 0:
                raise
            if why.fate is Fate.REFUSED:
                time.sleep(SECONDS_PER_TRY / 4)
    raise AssertionError("unreachable")


def _open(card: Card, bundle: Bundle, answer: bytes, ring: openpgp.CardRing) -> Receipt:
    """Return the receipt; raise MessageError unless this host signed it for this request."""
    sealed = picture.unwrap(answer, card.knock_key, Direction.TO_CLIENT, time.time())
    request = Request.decode(bundle.request)
    receipt = Receipt.decode(ring.open_receipt(card.fingerprint, sealed, to_b64(request.id)))
    if receipt.re != request.id:
        raise MessageError("receipt", "for another request")
    return receipt
