"""The policy ``agent.yml``: services, operators, and what each operator may do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tariq import strict
from tariq.errors import PolicyError

DEFAULT_PATH = Path("/etc/tariq/agent.yml")
DAY = 86_400


@dataclass(frozen=True, slots=True)
class Service:
    """A guarded protocol and port."""

    protocol: str
    port: int


@dataclass(frozen=True, slots=True)
class Operator:
    """Who may do what; ``longest`` lease in seconds."""

    fingerprint: str
    services: tuple[str, ...]
    longest: int


@dataclass(frozen=True, slots=True)
class Policy:
    """A whole policy; ``window`` is how many seconds a knock's clock may be off."""

    serial: int
    host: str
    port: int
    services: Mapping[str, Service]
    operators: Mapping[str, Operator]
    default_service: str | None = None
    sentry_user: str = "tariq-sentry"
    window: int = 60
    default_lease: int = 30
    require_source: bool = False

    def operator_of(self, fingerprint: str) -> tuple[str, Operator] | None:
        """Return the operator whose key that is."""
        for name, operator in self.operators.items():
            if operator.fingerprint == fingerprint:
                return name, operator
        return None


_SERVICE = strict.fields({"protocol": strict.one_of("tcp", "udp"), "port": strict.whole(1, 65_535)})
_OPERATOR = strict.fields(
    {
        "fingerprint": strict.fingerprint,
        "services": strict.listing(strict.name),
        "longest": strict.whole(1, 366 * DAY),
    },
    required={"fingerprint", "services"},
)
_POLICY = strict.fields(
    {
        "version": strict.whole(1, 1),
        "serial": strict.whole(1, 1 << 31),
        "host": strict.text,
        "port": strict.whole(1, 65_535),
        "sentry_user": strict.text,
        "window": strict.whole(5, DAY),
        "default_lease": strict.whole(1, DAY),
        "require_source": strict.flag,
        "services": strict.mapping(strict.name, _SERVICE),
        "default_service": strict.name,
        "operators": strict.mapping(strict.name, _OPERATOR),
        "tasks": strict.fields({}),
    },
    required={"version", "serial", "host", "port", "services", "operators"},
)
_LONGEST = 3600


def load(path: Path) -> Policy:
    """Read and check a policy; raise PolicyError that names the field."""
    raw = strict.read(path, PolicyError, "name a policy that you may read")
    try:
        return _build(_POLICY(raw))
    except strict.Wrong as why:
        thing = f"{path}: {why.where}" if why.where else str(path)
        raise PolicyError(thing, why.reason, "see docs/policy.md") from None


def _build(raw: dict[str, Any]) -> Policy:
    services = {name: Service(**service) for name, service in raw["services"].items()}
    operators = {
        name: Operator(**{"longest": _LONGEST, **operator})
        for name, operator in raw["operators"].items()
    }
    _check_references(raw, services, operators)
    known = {name: value for name, value in raw.items() if name not in ("version", "tasks")}
    return Policy(**{**known, "services": services, "operators": operators})


def _check_references(
    raw: dict[str, Any], services: dict[str, Service], operators: dict[str, Operator]
) -> None:
    default = raw.get("default_service")
    if default is not None and default not in services:
        raise strict.Wrong(f"no service {default!r} is defined", "default_service")
    for name, service in services.items():
        if (service.protocol, service.port) == ("tcp", raw["port"]):
            raise strict.Wrong("the knock port itself can't be a service", f"services.{name}.port")
    seen: dict[str, str] = {}
    for name, operator in operators.items():
        where = f"operators.{name}"
        for wanted in operator.services:
            if wanted not in services:
                raise strict.Wrong(f"no service {wanted!r} is defined", f"{where}.services")
        other = seen.setdefault(operator.fingerprint, name)
        if other != name:
            raise strict.Wrong(f"{other} has the same key", f"{where}.fingerprint")
