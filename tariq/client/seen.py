"""Which of our addresses each host saw, and whether to hold a host to it.

Behind address translation a client can't know its own address; the host's receipt
tells it. It is kept by host key and IP version in ``$XDG_STATE_HOME/tariq/seen.json``,
so that a later knock can name it (``--source remembered``). A changed address is told
and never followed silently: only a knock that named it (``--source ADDRESS`` or
``auto``) and was believed replaces the old one.
"""

from __future__ import annotations

import ipaddress
import json
import os
from pathlib import Path

from tariq.client.knock import Outcome


def path() -> Path:
    """Return where the memory is."""
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "tariq" / "seen.json"


class Seen:
    """The memory; a file that is missing or damaged is an empty one."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._known: dict[str, dict[str, str]] = _read(file)

    def address(self, fingerprint: str, version: int) -> str | None:
        """Return the address of ours that a host saw over IPv4 or IPv6."""
        return self._known.get(fingerprint, {}).get(str(version))

    def learn(self, fingerprint: str, outcome: Outcome, *, named: bool) -> str | None:
        """Take in a receipt; return a warning if the host saw another address than before.

        ``named`` tells that the request itself named the address.
        """
        if outcome.receipt is None:
            return None
        saw = outcome.receipt.seen
        version = ipaddress.ip_address(saw).version
        old = self.address(fingerprint, version)
        if old == saw:
            return None
        if old is None or (named and outcome.ok):
            self._known.setdefault(fingerprint, {})[str(version)] = saw
            self._write()
            return None
        hint = f"if that is right, knock with --source {saw}"
        return f"{outcome.host}: saw you as {saw}, and as {old} before; {hint}"

    def _write(self) -> None:
        """Write whole or not at all; a memory that can't be kept is no reason to fail."""
        draft = self._file.with_suffix(".new")
        try:
            self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            draft.write_text(json.dumps(self._known, indent=1))
            draft.replace(self._file)
        except OSError:
            return


def _read(file: Path) -> dict[str, dict[str, str]]:
    try:
        known = json.loads(file.read_text())
        return {
            str(host): {str(v): str(ipaddress.ip_address(a)) for v, a in addresses.items()}
            for host, addresses in known.items()
        }
    except (OSError, ValueError, AttributeError):
        return {}
