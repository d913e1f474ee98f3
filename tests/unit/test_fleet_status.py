"""Who is current, stale or worse: judged by what a host signed, and never by silence."""

import json

import pytest

from tariq.client import fleet
from tariq.client.inventory import Selected
from tariq.client.knock import Ending, Outcome
from tariq.message import Code, Receipt
from tariq.openpgp import keys_digest

ALICE, BOB, EVE, MALLORY = ("A" * 40, "B" * 40, "E" * 40, "F" * 40)
WANTED = Selected("web1", None, frozenset({ALICE, BOB}), frozenset({EVE, MALLORY}), 5)


def said(keys, serial=5, **more):
    digest = None if keys is None else keys_digest(keys)
    receipt = Receipt(bytes(16), 0, True, Code.STATUS, "192.0.2.1", serial, keys=digest)
    return Outcome("web1", Ending.YES, receipt=receipt, **more)


@pytest.mark.parametrize(
    ("outcome", "state", "detail"),
    [
        (said([BOB, ALICE]), "current", ""),
        (said([ALICE, BOB], serial=4), "stale", "its policy is 4, the inventory's 5"),
        (said([ALICE]), "stale", f"doesn't trust {BOB} yet"),
        (said([ALICE, BOB, EVE]), "revoked", f"still trusts {EVE}"),
        (said([ALICE, BOB, EVE, MALLORY]), "revoked", f"still trusts {EVE}, {MALLORY}"),
        (said([MALLORY]), "revoked", f"still trusts {MALLORY}"),
        (said([ALICE, BOB, "9" * 40]), "stale", "other keys"),
        (said(None), "stale", "too old"),
        (Outcome("web1", Ending.SILENT, reason="no answer"), "silent", "no answer"),
    ],
)
def test_a_host_is_what_it_proves_to_be(outcome, state, detail):
    finding = fleet.judge(WANTED, outcome)
    assert finding.state == state
    assert detail in finding.detail
    assert (finding.detail == "") == (state == "current")


def test_a_receipt_that_says_no_proves_nothing():
    receipt = Receipt(bytes(16), 0, False, Code.SKEW, "192.0.2.1", 5, detail="clocks")
    outcome = Outcome("web1", Ending.NO, receipt=receipt, reason="clocks")
    assert fleet.judge(WANTED, outcome).state == "no"


def test_many_revoked_keys_do_not_make_it_slow():
    many = frozenset(f"{at:040X}" for at in range(200))
    wanted = Selected("web1", None, frozenset({ALICE}), many, 5)
    assert fleet.judge(wanted, said([BOB])).state == "stale"


def test_the_report_tells_who_is_what():
    findings = [
        fleet.judge(WANTED, said([ALICE, BOB])),
        fleet.judge(WANTED, Outcome("web1", Ending.SILENT, reason="no answer")),
    ]
    assert fleet.table(findings).splitlines()[1].split() == ["web1", "current", "5"]
    assert json.loads(fleet.as_json(findings))[1]["state"] == "silent"
    assert fleet.summary(findings) == "1 of 2 hosts are current; silent: web1"


def test_a_digest_is_of_the_set_and_not_of_its_order():
    assert keys_digest([ALICE, BOB]) == keys_digest([BOB, ALICE, BOB])
    assert keys_digest([ALICE]) != keys_digest([BOB])
    assert len(keys_digest([])) == 16
