"""The warden: decides, acts, and signs what it did.

It holds the keys, the policy, the ledger and the firewall, and sees only OpenPGP
bytes that the sentry passes on. ``Warden.answer`` is the whole decision, in order:

    unseal ▸ unbundle ▸ verify the operator ▸ for this host? ▸ not used before?
    ▸ fresh? ▸ from the address it names? ▸ allowed? ▸ act ▸ sign the receipt

Until the request is known to be an operator's, for this host and new, every refusal
is silence. After that it is a signed receipt.
"""

from __future__ import annotations

import codecs
import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from tariq import openpgp, picture
from tariq.agent.firewall import Keeper, Lease
from tariq.agent.ledger import Ledger
from tariq.agent.link import Knock
from tariq.agent.policy import DAY, Policy, Service, wrong_family
from tariq.agent.refusals import Refusals
from tariq.agent.shelf import MOST, End, Run, Shelf
from tariq.agent.tasks import BadParams, Task
from tariq.errors import AgentError, FirewallError, MessageError, NoGpgError, TariqError
from tariq.message import (
    Action,
    Bundle,
    Code,
    Receipt,
    Request,
    State,
    TaskRun,
    label,
    to_b64,
)
from tariq.picture.proof import WINDOW

MEMORY = 3 * WINDOW
"""Seconds for which ids are kept: longer than any picture's proof counts (two windows)."""
MOST_LEASES = 256
"""Leases at a time that one operator may have, over all addresses and services."""
WAIT = 1.0
"""Seconds that a task may take before its receipt says ``running``: a client waits 2.1."""
_OUT_BYTES = picture.CAPACITY
"""What of an output is looked at for a receipt, of which less fits."""
_RECENT = 8
_AGAIN = 60.0
"""Seconds until leases of strangers that couldn't be ended are tried again."""
_SLACK = 2
"""Seconds by which the kernel may end a lease before its record says so."""
log = logging.getLogger("tariq.warden")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, from where, and when: the one time by which all of a request is judged."""

    name: str
    source: str
    now: int


@dataclass(slots=True)
class Verdict:
    """What a receipt will say."""

    code: Code
    ok: bool = False
    detail: str = ""
    leases: dict[str, int] = field(default_factory=dict)
    keys: bytes | None = None
    run: str | None = None
    tasks: tuple[TaskRun, ...] = ()


@dataclass(frozen=True, slots=True)
class Waiting:
    """Somebody who waits for a run to end, until a time of ``time.monotonic``."""

    request: Request
    caller: Caller
    verdict: Verdict
    reply: Callable[[bytes], None]
    until: float


class Warden:
    """Answers knocks. ``clock`` in Unix seconds."""

    def __init__(
        self,
        *,
        policy: Policy,
        host_key: openpgp.HostKey,
        operators: openpgp.OperatorRing,
        ledger: Ledger,
        firewall: Keeper,
        shelf: Shelf,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._policy, self._clock = policy, clock
        self._host_key, self._operators = host_key, operators
        self._ledger, self._firewall, self._shelf = ledger, firewall, shelf
        self._refusals = Refusals(ledger.note)
        self._waiting: list[Waiting] = []
        self._overhead = 0
        self._strangers_at = math.inf
        """When leases of strangers that couldn't be ended are tried again, by time.monotonic."""
        self.silences = 0
        self._actions = {
            Action.OPEN: self._open,
            Action.CLOSE: self._close,
            Action.STATUS: self._status,
            Action.RUN: self._run,
        }

    def answer(self, knock: Knock, reply: Callable[[bytes], None]) -> None:
        """Call ``reply`` once, now or later, with the sealed receipt, or nothing for silence."""
        until = time.monotonic() + WAIT
        try:
            request, caller = self._accept(knock)
        except MessageError as why:
            self._refuse(knock, why)
            reply(b"")
            return
        except (AgentError, NoGpgError) as why:
            log.error("silence for %s: %s", knock.source, why)  # noqa: TRY400 - it says enough
            self.silences += 1
            reply(b"")
            return
        verdict = self._decide(request, caller)
        if verdict.run is not None:
            self._waiting.append(Waiting(request, caller, verdict, reply, until))
            return
        reply(self._settle(request, self._receipt(request, caller, verdict), caller))

    def _refuse(self, knock: Knock, why: MessageError) -> None:
        """Record a knock that gets silence: it proved itself to the sentry, and to nobody else."""
        log.info("silence for %s: %s", knock.source, why)
        self.silences += 1
        with self._recording("refused knock"):
            self._refusals.add(knock.source, why.thing, why.reason)

    @staticmethod
    @contextlib.contextmanager
    def _recording(what: str) -> Iterator[None]:
        """Log that something isn't in the trail: it is done, or nothing is to be done."""
        try:
            yield
        except AgentError as why:
            log.error("%s not recorded: %s", what, why)  # noqa: TRY400 - the reason is enough

    def recover(self) -> None:
        """Record what an agent before this one left open: requests, and runs that ended since."""
        self._end_leases_of_strangers()
        self._tell_of_lost_leases()
        with self._recording("requests without an outcome"):
            if left := self._ledger.close_open():
                log.warning("%d requests were claimed and never answered: outcome unknown", left)
        oldest = int(self._clock()) - self._policy.audit_days * DAY
        for run in self._shelf.ended():  # an older one's row may have left again
            new = run.end is not None and run.end.t >= oldest
            if new and not self._ledger.has("ended", run.label):
                self._record_end(run)

    def adopt(self, policy: Policy, operators: openpgp.OperatorRing) -> None:
        """Go by another policy and keyring from the next knock on; runs and waiters stay."""
        self._policy, self._operators = policy, operators
        self._end_leases_of_strangers()

    def finish(self) -> None:
        """Tell those who wait for a run that it is still running: this agent ends."""
        self._waiting = [replace(each, until=0.0) for each in self._waiting]
        self.step()
        with self._recording("refused knocks"):
            self._refusals.step(now=True)

    def tick(self) -> None:
        """Do what is due about once a second."""
        self.step()
        if time.monotonic() >= self._strangers_at:
            self._end_leases_of_strangers()

    @property
    def running(self) -> int:
        """How many runs haven't ended."""
        return self._shelf.running()

    def step(self) -> bool:
        """See which runs ended, answer who waits for one, and tell whether anybody still does."""
        with self._recording("refused knocks"):
            self._refusals.step()
        ended = self._shelf.step()
        for run in ended:
            self._record_end(run)
        self._waiting = [each for each in self._waiting if not self._tell(each)]
        if ended:  # not sooner: who waited for one was told of it
            self._shelf.prune()
        return bool(self._waiting)

    def _tell(self, each: Waiting) -> bool:
        """Answer somebody who waits, if it is time to; tell whether that is done with.

        What the machine is too short of something for is tried again until their time is over.
        """
        run, over = self._shelf.get(each.verdict.run or ""), time.monotonic() >= each.until
        if run.end is None and not over:
            return False
        try:
            message = self._settle(each.request, self._task_receipt(each, run), each.caller)
        except OSError as why:
            if not over:
                return False
            log.error("no receipt for %s: %s", each.caller.name, why)  # noqa: TRY400
            message = b""
        each.reply(message)
        return True

    def _record_end(self, run: Run) -> None:
        assert run.end is not None
        known = {"exit": run.end.exit, "detail": run.end.why or None, "size": run.end.size}
        known |= {"sha256": run.end.sha256 or None}
        with self._recording(f"end of run {run.label}"):
            self._ledger.note(
                "ended",
                id=run.label,
                operator=run.operator,
                source=run.source,
                task=run.name,
                **{name: value for name, value in known.items() if value is not None},
            )

    # --- is it an operator's, for us, and new? -------------------------------------------

    def _accept(self, knock: Knock) -> tuple[Request, Caller]:
        """Return request and caller; raise MessageError for anything that gets silence."""
        bundle = Bundle.decode(self._host_key.unseal(knock.message))
        caller = self._caller(self._operators.verify(bundle.signed, bundle.signature), knock)
        request = Request.decode(bundle.request)
        if self._host_key.addressed(request.to) is None:
            raise MessageError("host", "it is for another one")
        # never sooner than the last moment at which a message of that time is accepted
        memory = max(MEMORY, 2 * self._policy.window)
        if request.t > caller.now + memory:  # no client's own picture: not to be kept for years
            raise MessageError("ledger", "from too far ahead")
        self._ledger.forget_before(caller.now - memory)
        used = (request.id, request.t, caller.name, caller.source, bundle.request)
        if not self._ledger.claim(*used):
            raise MessageError("ledger", "used before")
        return request, caller

    def _caller(self, fingerprint: str, knock: Knock) -> Caller:
        found = self._policy.operator_of(fingerprint)
        if found is None:
            raise MessageError("signature", f"by {fingerprint}, no operator here")
        return Caller(found[0], knock.source, int(self._clock()))

    # --- what is done ---------------------------------------------------------------------

    def _decide(self, request: Request, caller: Caller) -> Verdict:
        if refused := self._out_of_time(request, caller) or self._out_of_place(request, caller):
            return refused
        try:
            return self._actions[request.do](request, caller)
        except (AgentError, NoGpgError) as why:  # firewall, ledger, keyring
            log.exception("failed for %s", caller.name)
            return Verdict(Code.FAILED, detail=str(why)[:120])

    def _out_of_time(self, request: Request, caller: Caller) -> Verdict | None:
        """Refuse a request whose clock is too far from ours, and name both clocks.

        Only for a request that was never used: an old one that is sent again is a replay
        by its id, and gets silence.
        """
        if abs(request.t - caller.now) <= self._policy.window:
            return None
        detail = f"your clock says {_clock(request.t)}, this host's {_clock(caller.now)}"
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
        for name, service in services.items():
            if elsewhere := wrong_family(name, service, caller.source):
                return Verdict(Code.ADDRESS, detail=elsewhere)
            allowed = self._policy.may(caller.name, "services", name, caller.source, caller.now)
            if not allowed.ok:
                return Verdict(Code.DENIED, detail=allowed.why)
            seconds[name] = min(request.seconds or self._policy.default_lease, allowed.longest)
        key = self._policy.operators[caller.name].fingerprint
        wanted = {(caller.source, each.protocol, each.port) for each in services.values()}
        if len(self._ledger.running(caller.now, key) | wanted) > MOST_LEASES:
            return Verdict(Code.BUSY, detail=f"{MOST_LEASES} leases of yours are open")
        for name, service in services.items():  # first, so that a revoked key's are always found
            where = (service.protocol, service.port)
            self._ledger.lease(key, caller.source, where, caller.now + seconds[name])
        self._firewall.open(
            Lease(caller.source, service, seconds[name]) for name, service in services.items()
        )
        leases = {name: caller.now + seconds[name] for name in services}
        return Verdict(Code.OPENED, ok=True, leases=leases)

    def _close(self, request: Request, caller: Caller) -> Verdict:
        services = self._services(request)
        if isinstance(services, Verdict):
            return services
        for service in services.values():
            self._ledger.ended(caller.source, (service.protocol, service.port), caller.now)
        leases = [Lease(caller.source, service, 0) for service in services.values()]
        self._firewall.close(leases, cut=request.cut)
        return Verdict(Code.CLOSED, ok=True, detail="connections cut" if request.cut else "")

    def _status(self, _: Request, caller: Caller) -> Verdict:
        self.step()
        names = {service: name for name, service in self._policy.services.items()}
        leases = {
            names[lease.service]: caller.now + lease.seconds
            for lease in self._firewall.leases()
            if lease.address == caller.source and lease.service in names
        }
        recent = self._shelf.recent(caller.name)[:_RECENT]
        tasks = tuple(self._shelf.line(run) for run in recent)
        return Verdict(
            Code.STATUS,
            ok=True,
            leases=leases,
            tasks=tasks,
            keys=openpgp.keys_digest(self._trusted()),
            detail=self._firewall.news[:160],
        )

    def _trusted(self) -> set[str]:
        """Return the keys that this process trusts: those that are both in keyring and policy."""
        listed = {operator.fingerprint for operator in self._policy.operators.values()}
        return listed & self._operators.states().keys()

    def _end_leases_of_strangers(self) -> None:
        """End what keys opened that are no longer trusted, and connections that came that way.

        Also connections whose lease is over: it is remembered for a day at least. Not where a
        trusted key came by the same way: its connections can't be told from theirs, and the
        one by which this very change arrives may be among them. What fails is tried again.
        """
        self._strangers_at = time.monotonic() + _AGAIN
        try:
            trusted = self._trusted()
            theirs = self._ledger.leases_of_strangers(trusted, int(self._clock()))
            services = {(each.protocol, each.port): each for each in self._policy.services.values()}
            leases = {
                Lease(source, services[protocol, port], 0): cut
                for (source, protocol, port), cut in sorted(theirs.items())
                if (protocol, port) in services
            }
            # every lease is ended before connections are cut, which takes a program more
            ended = [self._end(lease) for lease in leases]
            ended += [self._end(lease, cut=True) for lease, cut in leases.items() if cut]
            if all(ended):
                self._ledger.forget_strangers(trusted)
                self._strangers_at = math.inf
        except TariqError as why:
            log.error("leases of keys that aren't trusted may go on: %s", why)  # noqa: TRY400

    def _end(self, lease: Lease, *, cut: bool = False) -> bool:
        """End a stranger's lease, or the connections on it; tell whether that worked."""
        where = f"{lease.service.protocol}/{lease.service.port} for {lease.address}"
        what = "connections" if cut else "lease"
        try:
            self._firewall.close([lease], cut=cut)
        except FirewallError as why:
            log.error("%s of a key not trusted may go on: %s: %s", what, where, why)  # noqa: TRY400
            return False
        log.info("ended: %s of a key not trusted: %s", what, where)
        return True

    def _tell_of_lost_leases(self) -> None:
        """Tell which leases should run and don't: the guard went while no agent could see it.

        They stay lost: after a restart of the host they have to be.
        """
        try:
            held = self._firewall.leases()
            lost = self._ledger.running(int(self._clock()) + _SLACK)
        except AgentError as why:
            log.error("leases may be gone: %s", why)  # noqa: TRY400 - the reason is enough
            return
        lost -= {(each.address, each.service.protocol, each.service.port) for each in held}
        for source, protocol, port in sorted(lost):
            log.warning("gone: %s/%d for %s", protocol, port, source)
        if lost:
            self._firewall.tell(f"leases that were gone when the agent started: {len(lost)}")

    def _run(self, request: Request, caller: Caller) -> Verdict:
        """Start a task; its receipt follows when it has ended, or WAIT is over."""
        name = request.what[0] if len(request.what) == 1 else ""
        task = self._policy.tasks.get(name)
        if task is None:
            return Verdict(Code.UNKNOWN, detail=f"no task {name!r} here")
        allowed = self._policy.may(caller.name, "tasks", name, caller.source, caller.now)
        if not allowed.ok:
            return Verdict(Code.DENIED, detail=allowed.why)
        try:
            argv = task.fill(request.args)
        except BadParams as why:
            return Verdict(Code.DENIED, detail=f"{name}: {why}")
        self.step()
        if self._shelf.running() >= MOST:
            return Verdict(Code.BUSY, detail=f"{MOST} tasks are running")
        if not task.concurrent and self._shelf.running(name):
            return Verdict(Code.BUSY, detail=f"{name} is running")
        return self._start(self._as_run(request, caller, task, argv))

    def _as_run(self, request: Request, caller: Caller, task: Task, argv: list[str]) -> Run:
        return Run(
            label=label(request.id),
            name=request.what[0],
            argv=argv,
            user=task.user,
            group=task.group,
            cwd=task.cwd,
            seconds=task.seconds,
            output=task.output,
            operator=caller.name,
            source=caller.source,
            t=self._clock(),
        )

    def _start(self, run: Run) -> Verdict:
        try:
            self._shelf.start(run)
        except AgentError as why:
            log.exception("not started for %s", run.operator)
            return Verdict(Code.FAILED, detail=why.reason[:120])
        return Verdict(Code.RAN, ok=True, run=run.label)

    # --- what is answered -------------------------------------------------------------------

    def _receipt(self, request: Request, caller: Caller, verdict: Verdict) -> Receipt:
        return Receipt(
            re=request.id,
            t=caller.now,
            ok=verdict.ok,
            code=verdict.code,
            seen=caller.source,
            policy=self._policy.serial,
            leases=verdict.leases,
            tasks=verdict.tasks,
            keys=verdict.keys,
            detail=verdict.detail,
        )

    def _task_receipt(self, each: Waiting, run: Run) -> Receipt:
        """Return what there is to say of a run: all, or that it is still running."""
        state, verdict = self._shelf.state(run.label), each.verdict
        if state is State.LOST and run.end is not None:
            verdict = Verdict(Code.FAILED, detail=run.end.why)
        receipt = self._receipt(each.request, each.caller, verdict)
        head = self._shelf.head(run.label, _OUT_BYTES)
        end = run.end or End(0, size=len(head) + 1)
        out = codecs.getincrementaldecoder("utf-8")("replace").decode(head, len(head) == end.size)
        receipt = replace(receipt, task=run.label, state=state, out=out)
        if run.end is None:
            return receipt
        cut = f"; output cut at {end.size} bytes" if end.seen > end.size else ""
        return replace(
            receipt,
            exit=end.exit,
            size=end.size,
            sum=bytes.fromhex(end.sha256)[:16] if end.sha256 else None,
            detail=(end.why + cut).removeprefix("; "),
        )

    def _settle(self, request: Request, receipt: Receipt, caller: Caller) -> bytes:
        """Record the outcome and seal; the ledger's rows are what is logged.

        The claim was recorded before anything was done; where the outcome can't be,
        the lease stands (the kernel ends it) and the log says so.
        """
        receipt = receipt.fitted(picture.CAPACITY - self._overhead)
        try:
            self._ledger.settle(request.id, receipt.encode())
        except AgentError as why:
            log.error("outcome not recorded: %s", why)  # noqa: TRY400 - the reason is enough
        try:
            return self._seal(receipt, request)
        except (AgentError, NoGpgError) as why:
            log.error("no receipt for %s: %s", caller.name, why)  # noqa: TRY400
            return b""

    def _seal(self, receipt: Receipt, request: Request) -> bytes:
        """Seal what of a receipt fits one packet; what sealing adds is measured, not known."""
        # by the key that the client knows: while keys change there are two
        signer = self._host_key.addressed(request.to) or self._host_key
        while True:
            raw = receipt.fitted(picture.CAPACITY - self._overhead).encode()
            sealed = signer.seal_receipt(raw, to_b64(request.id))
            known, self._overhead = self._overhead, max(self._overhead, len(sealed) - len(raw))
            if len(sealed) <= picture.CAPACITY or known == self._overhead:
                return sealed


def _clock(t: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(t))
