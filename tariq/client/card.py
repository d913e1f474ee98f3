"""Host cards: one YAML file per host, all that a client needs to knock there.

A card, or single values of it (``knock_key: !vault |``), may be encrypted with
ansible-vault.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tariq import strict
from tariq.client import vault
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


@dataclass(frozen=True, slots=True)
class _Vaulted:
    """A value that is encrypted; no check of a field takes it for the text that it stands for."""

    text: str


_Opened = Mapping[_Vaulted, str | vault.Refused]


class _Loader(strict.Loader):
    pass


def _vaulted(loader: _Loader, node: yaml.ScalarNode) -> _Vaulted:
    return _Vaulted(str(loader.construct_scalar(node)))


_Loader.add_constructor("!vault", _vaulted)


@dataclass(frozen=True, slots=True)
class _Draft:
    """A card as it was read; ``content`` is a ``_Vaulted`` if all of it is encrypted."""

    host: str
    path: Path
    content: Any

    def sealed(self) -> Iterator[_Vaulted]:
        """Yield what has to be decrypted first."""
        values = self.content.values() if isinstance(self.content, dict) else [self.content]
        yield from (value for value in values if isinstance(value, _Vaulted))

    def card(self, opened: _Opened) -> Card:
        """Return the card; raise CardError."""
        content = self.content
        if isinstance(content, _Vaulted):
            content = strict.parse(self._text(opened[content]), str(self.path), CardError)
        elif isinstance(content, dict):
            content = {
                # "echo KEY | ansible-vault encrypt_string" leaves a line's end in it
                name: self._text(opened[item]).strip() if isinstance(item, _Vaulted) else item
                for name, item in content.items()
            }
        return _checked(self.path, content)

    def _text(self, found: str | vault.Refused) -> str:
        if isinstance(found, vault.Refused):
            raise CardError(f"card {self.host}", found.reason, found.hint)
        return found


def load(places: Sequence[tuple[Path, str]]) -> list[Card]:
    """Read the cards of hosts, each in its directory; raise the first CardError."""
    cards = []
    for each in load_all(places):
        if isinstance(each, CardError):
            raise each
        cards.append(each)
    return cards


def load_all(places: Sequence[tuple[Path, str]]) -> list[Card | CardError]:
    """Read the cards of hosts, each in its directory; for one that can't be used, say why.

    Starts one helper process if any of them is vaulted, and none otherwise.
    """
    drafts = [_draft(directory, host) for directory, host in places]
    good = [draft for draft in drafts if isinstance(draft, _Draft)]
    sealed = list(dict.fromkeys(value for draft in good for value in draft.sealed()))
    texts = vault.decrypt([value.text for value in sealed])
    opened = dict(zip(sealed, texts, strict=True))
    return [_finished(draft, opened) for draft in drafts]


def _draft(directory: Path, host: str) -> _Draft | CardError:
    try:
        path = path_of(directory, host)
        text = _text(path, host)
        if vault.is_vaulted(text):
            return _Draft(host, path, _Vaulted(text))
        return _Draft(host, path, strict.parse(text, str(path), CardError, _Loader))
    except CardError as why:
        return why


def _text(path: Path, host: str) -> str:
    if not path.exists():
        hint = "deploy to the host first, or pass --cards or --inventory"
        raise CardError(host, f"no card at {path}", hint)
    return strict.contents(path, CardError, _HINT)


def _finished(draft: _Draft | CardError, opened: _Opened) -> Card | CardError:
    try:
        return draft if isinstance(draft, CardError) else draft.card(opened)
    except CardError as why:
        return why


def _checked(path: Path, content: Any) -> Card:  # noqa: ANN401
    try:
        known = _FIELDS(content)
    except strict.Wrong as why:
        thing = f"{path}: {why.where}" if why.where else str(path)
        raise CardError(thing, why.reason, _HINT) from None
    del known["card"]
    return Card(**known)
