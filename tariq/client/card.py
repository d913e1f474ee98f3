"""Host cards: one YAML file per host, all that a client needs to knock there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tariq import strict
from tariq.errors import CardError
from tariq.picture.proof import KEY_BYTES
from tariq.transport.base import TRANSPORTS


@dataclass(frozen=True, slots=True)
class Card:
    """One host: where it is, how it proves itself, what it offers."""

    name: str
    addresses: tuple[str, ...]
    port: int
    transports: tuple[str, ...]
    fingerprint: str
    public_key: bytes
    knock_key: bytes
    services: dict[str, str]
    policy: int
    default_service: str | None = None
    groups: tuple[str, ...] = ()

    def addresses_of(self, version: int | None) -> list[str]:
        """Return the addresses of one IP version, or all of them."""
        return [
            address
            for address in self.addresses
            if version is None or (":" in address) == (version == 6)
        ]


def _knock_key(value: Any) -> bytes:  # noqa: ANN401
    raw: bytes = strict.base64_bytes(value)
    if len(raw) != KEY_BYTES:
        raise strict.Wrong(f"not {KEY_BYTES} bytes of base64")
    return raw


def _optional_name(value: Any) -> str | None:  # noqa: ANN401
    return None if value is None else strict.name(value)


_FIELDS = strict.fields(
    {
        "card": strict.whole(1, 1),
        "name": strict.text,
        "addresses": strict.listing(strict.address, least=1),
        "port": strict.whole(1, 65_535),
        "transports": strict.listing(strict.one_of(*TRANSPORTS), least=1),
        "fingerprint": strict.fingerprint,
        "public_key": strict.base64_bytes,
        "knock_key": _knock_key,
        "services": strict.mapping(strict.name, strict.text),
        "default_service": _optional_name,
        "groups": strict.listing(strict.text),
        "policy": strict.whole(1, 1 << 31),
    },
    required={
        "card",
        "name",
        "addresses",
        "port",
        "transports",
        "fingerprint",
        "public_key",
        "knock_key",
        "services",
        "policy",
    },
)
_HINT = "deploy to the host again to write a new card"


def path_of(directory: Path, host: str) -> Path:
    """Return where a host's card is; raise CardError for a name that would leave the directory."""
    if not host or "/" in host or host.startswith("."):
        raise CardError(f"host {host!r}", "not a name that a card can have", "check the name")
    return directory / f"{host}.yml"


def load(directory: Path, host: str) -> Card:
    """Read a host's card; raise CardError."""
    path = path_of(directory, host)
    if not path.exists():
        hint = "deploy to the host first, or pass --cards or --inventory"
        raise CardError(host, f"no card at {path}", hint)
    raw = strict.read(path, CardError, _HINT)
    try:
        known = _FIELDS(raw)
    except strict.Wrong as why:
        thing = f"{path}: {why.where}" if why.where else str(path)
        raise CardError(thing, why.reason, _HINT) from None
    del known["card"]
    return Card(**known)
