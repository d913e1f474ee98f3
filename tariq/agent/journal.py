"""One structured line for each row of the audit trail.

Where systemd has connected standard error to its journal (systemd.exec(5), JOURNAL_STREAM), an
entry with fields goes to the journal's own socket; anywhere else a line of JSON goes to
standard error. The line has the row's hash: kept elsewhere, it shows a trail that was cut.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import sys
from collections.abc import Mapping
from typing import Any

from tariq.agent.ledger import Entry

SOCKET = "/run/systemd/journal/socket"


def write(entry: Entry) -> None:
    """Log a row; never an error: the row itself is on disk already."""
    with contextlib.suppress(OSError):
        if not _has_journal() or not _send(_fields(entry)):
            known = {**entry.content, "hash": entry.hash}
            print(json.dumps(known, sort_keys=True), file=sys.stderr, flush=True)


def _has_journal() -> bool:
    """Tell whether standard error is the journal: device and inode are those of the variable."""
    found = os.fstat(sys.stderr.fileno())
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def message(content: Mapping[str, Any]) -> str:
    """Return a row in words."""
    args = (f"{name}={value}" for name, value in content.get("args", {}).items())
    asked = " ".join([content.get("do", ""), *content.get("what", ()), *args])
    who = str(content.get("source", ""))
    who = f"{content['operator']} from {who}" if content.get("operator") else who
    told = [str(content[name]) for name in ("task", "code", "layer", "detail") if content.get(name)]
    told += [f"exit {content['exit']}"] if "exit" in content else []
    return ": ".join(part for part in (content["event"], who, asked, ", ".join(told)) if part)


def _fields(entry: Entry) -> dict[str, str]:
    fields = {
        "MESSAGE": message(entry.content),
        "PRIORITY": "6",
        "SYSLOG_IDENTIFIER": "tariq",
        "TARIQ_HASH": entry.hash,
    }
    for name, value in entry.content.items():
        text = value if isinstance(value, str) else json.dumps(value)
        fields[f"TARIQ_{name.upper()}"] = text
    return fields


def _send(fields: Mapping[str, str]) -> bool:
    """Send one entry in the journal's native protocol; False if it isn't there to take it."""
    datagram = b""
    for name, value in fields.items():
        raw = value.encode()
        head = f"{name}\n".encode() + struct.pack("<Q", len(raw)) if "\n" in value else b""
        datagram += (head or f"{name}=".encode()) + raw + b"\n"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        try:
            sock.sendto(datagram, SOCKET)
        except OSError:
            return False
    return True
