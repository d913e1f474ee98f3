"""The warden: decides, acts, and signs what it did.

It holds the keys, the policy, the ledger and the firewall, and sees only OpenPGP
bytes that the sentry passes on. ``Warden.answer`` is the whole decision, in order:

    unseal ▸ unbundle ▸ verify the operator ▸ for this host? ▸ not used before?
    ▸ fresh? ▸ from the address it names? ▸ allowed? ▸ act ▸ sign the receipt

Until the request is known to be an operator's, for this host and new, every refusal
is silence. After that it is a signed receipt.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tariq import openpgp
from tariq.agent.firewall import Firewall, Lease
from tariq.agent.ledger import Ledger
from tariq.agent.link import Knock
from tariq.agent.policy import Policy, Service
from tariq.errors import AgentError, FirewallError, MessageError
from tariq.message import Action, Bundle, Code, Receipt, Request, to_b64
from tariq.picture.proof import WINDOW

MEMORY = 3 * WINDOW
"""Seconds for which ids are kept: longer than any picture's proof counts (two windows)."""
log = logging.getLogger("tariq.warden")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, and from where."""

    name: str
    source: str


@dataclass(slots=True)
class Verdict:
    """What a receipt will say."""

    code: Code
    ok: bool = False
    detail: str = ""
    leases: dict[str, int] = field(default_factory=dict)


class Warden:
    """Answers knocks. ``clock`` in Unix seconds."""

    def __init__(
        self,
        *,
        policy: Policy,
        host_key: openpgp.HostKey,
        operators: openpgp.OperatorRing,
        ledger: Ledger,
        firewall: Firewall,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._policy, self._clock = policy, clock
        self._host_key, self._operators = host_key, operators
        self._ledger, self._firewall = ledger, firewall
        self._actions = {
            Action.OPEN: self._open,
            Action.CLOSE: self._close,
            Action.STATUS: self._status,
            Action.RUN: self._run,
        }

    def answer(self, knock: Knock) -> bytes:
        """Return the sealed receipt, or nothing for silence."""
        try:
            request, caller = self._accept(knock)
        except MessageError as why:
            log.info("silence for %s: %s", knock.source, why)
            return b""
        except AgentError:
            log.exception("silence for %s: can't be recorded", knock.source)
            return b""
        receipt = self._receipt(request, caller, self._decide(request, caller))
        return self._settle(request, receipt, caller)

    # --- is it an operator's, for us, and new? -------------------------------------------

    def _accept(self, knock: Knock) -> tuple[Request, Caller]:
        """Return request and caller; raise MessageError for anything that gets silence."""
        bundle = Bundle.decode(self._host_key.unseal(knock.message))
        caller = self._caller(self._operators.verify(bundle.signed, bundle.signature), knock)
        request = Request.decode(bundle.request)
        now = int(self._clock())
        if request.to != openpgp.short(self._host_key.fingerprint):
            raise MessageError("request", "for another host")
        # never sooner than the last moment at which a message of that time is accepted
        self._ledger.forget_before(now - max(MEMORY, 2 * self._policy.window))
        used = (request.id, request.t, caller.name, caller.source, bundle.request)
        if not self._ledger.claim(*used):
            raise MessageError("request", "used before")
        return request, caller

    def _caller(self, fingerprint: str, knock: Knock) -> Caller:
        found = self._policy.operator_of(fingerprint)
        if found is None:
            raise MessageError("request", f"signed by {fingerprint}, no operator here")
        return Caller(found[0], knock.source)

    # --- what is done ---------------------------------------------------------------------

    def _decide(self, request: Request, caller: Caller) -> Verdict:
        if refused := self._out_of_time(request) or self._out_of_place(request, caller):
            return refused
        try:
            return self._actions[request.do](request, caller)
        except FirewallError as why:
            log.exception("failed for %s", caller.name)
            return Verdict(Code.FAILED, detail=str(why)[:120])

    def _out_of_time(self, request: Request) -> Verdict | None:
        """Refuse a request whose clock is too far from ours, and name both clocks.

        Only for a request that was never used: an old one that is sent again is a replay
        by its id, and gets silence.
        """
        now = int(self._clock())
        if abs(request.t - now) <= self._policy.window:
            return None
        detail = f"your clock says {_clock(request.t)}, this host's {_clock(now)}"
        return Verdict(Code.SKEW, detail=detail)

    def _out_of_place(self, request: Request, caller: Caller) -> Verdict | None:
        """Refuse a request that names another address than the one it came from."""
        if request.src == caller.source:
            return None
        if request.src is not None:
            return Verdict(Code.ADDRESS, detail=f"the request is for {request.src}")
        if self._policy.require_source:
            return Verdict(Code.ADDRESS, detail="this host wants --source named")
        return None

    def _services(self, request: Request) -> dict[str, Service] | Verdict:
        """Return the services that a request names, or why there is none."""
        default = self._policy.default_service
        names = request.what or ((default,) if default else ())
        if not names:
            return Verdict(Code.UNKNOWN, detail="no service named, and no default here")
        for name in names:
            if name not in self._policy.services:
                return Verdict(Code.UNKNOWN, detail=f"no service {name!r} here")
        return {name: self._policy.services[name] for name in names}

    def _open(self, request: Request, caller: Caller) -> Verdict:
        services = self._services(request)
        if isinstance(services, Verdict):
            return services
        seconds = {}
        for name in services:
            allowed = self._policy.may(caller.name, "services", name, caller.source, self._clock())
            if not allowed.ok:
                return Verdict(Code.DENIED, detail=allowed.why)
            seconds[name] = min(request.seconds or self._policy.default_lease, allowed.longest)
        for name, service in services.items():
            self._firewall.open(Lease(caller.source, service, seconds[name]))
        now = int(self._clock())
        leases = {name: now + seconds[name] for name in services}
        return Verdict(Code.OPENED, ok=True, leases=leases)

    def _close(self, request: Request, caller: Caller) -> Verdict:
        services = self._services(request)
        if isinstance(services, Verdict):
            return services
        for service in services.values():
            self._firewall.close(caller.source, service)
        return Verdict(Code.CLOSED, ok=True)

    def _status(self, _: Request, caller: Caller) -> Verdict:
        now = int(self._clock())
        names = {service: name for name, service in self._policy.services.items()}
        leases = {
            names[lease.service]: now + lease.seconds
            for lease in self._firewall.leases()
            if lease.address == caller.source and lease.service in names
        }
        return Verdict(Code.STATUS, ok=True, leases=leases)

    def _run(self, request: Request, _: Caller) -> Verdict:
        name = request.what[0] if request.what else ""
        return Verdict(Code.UNKNOWN, detail=f"no task {name!r} here")

    # --- what is answered -------------------------------------------------------------------

    def _receipt(self, request: Request, caller: Caller, verdict: Verdict) -> Receipt:
        return Receipt(
            re=request.id,
            t=int(self._clock()),
            ok=verdict.ok,
            code=verdict.code,
            seen=caller.source,
            policy=self._policy.serial,
            leases=verdict.leases,
            detail=verdict.detail,
        )

    def _settle(self, request: Request, receipt: Receipt, caller: Caller) -> bytes:
        """Record the outcome, log and seal.

        The claim was recorded before anything was done; where the outcome can't be,
        the lease stands (the kernel ends it) and the log says so.
        """
        what = ",".join(request.what) or "-"
        log.info(
            "%s from %s: %s %s: %s", caller.name, caller.source, request.do, what, receipt.code
        )
        try:
            self._ledger.settle(request.id, receipt.encode())
        except AgentError as why:
            log.error("outcome not recorded: %s", why)  # noqa: TRY400 - the reason is enough
        try:
            return self._host_key.seal_receipt(receipt.encode(), to_b64(request.id))
        except AgentError:
            log.exception("no receipt for %s", caller.name)
            return b""


def _clock(t: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(t))
