"""What the policy refuses an operator stays shut, and what it limits is limited."""

import datetime as dt
import itertools
import json
import signal
import time

import pytest
from lab import Network, eventually

HERE, ELSEWHERE = f"{Network.V4['client']}/32", f"{Network.V4['stranger']}/32"
NOW = dt.datetime.now(dt.UTC)
YESTERDAY = (NOW - dt.timedelta(days=1)).date().isoformat()
EAST = "Etc/GMT-12"
"""Twelve hours ahead of UTC; POSIX has the sign the other way round."""


def around(hours: int) -> str:
    """Return the hours around what the clock says in so many: whenever this runs, any day."""
    begin, end = (NOW + dt.timedelta(hours=hours + each) for each in (-3, 3))
    return f"daily {begin:%H:%M}-{end:%H:%M}"


@pytest.fixture
def under(world):
    """Return a function that puts alice under a grant, and other fields into the policy."""
    before, serials = dict(world.host.policy), itertools.count(world.host.policy["serial"] + 1)

    def change(grant, **fields):
        key = before["operators"]["alice"]["fingerprint"]
        world.host.policy.clear()
        world.host.policy |= before | fields | {"serial": next(serials)}
        world.host.policy["operators"] = {"alice": {"fingerprint": key, **grant}}
        world.host.write_policy()
        world.host.process.send_signal(signal.SIGHUP)
        reloaded = f"reloaded: policy {world.host.policy['serial']} of"
        eventually(lambda: reloaded in world.host.log.read_text(), 10)

    yield change
    world.knock("-4", verb="close")
    change(before["operators"]["alice"])
    before["serial"] = world.host.policy["serial"]
    world.host.policy |= before


def ask(world, *words):
    """Knock for ssh as alice; return what the receipt says."""
    done = world.knock("-4", "--open", "ssh", "--json", *words, check=False)
    told = json.loads(done.stdout)[0]["receipt"]
    assert told["policy"] == world.host.policy["serial"], told
    assert (done.returncode == 0) == told["ok"]
    return told


ALWAYS = {"services": ["ssh"]}


@pytest.mark.parametrize(
    ("grant", "why"),
    [
        ({"services": ["web"]}, "alice has no ssh among its services"),
        (ALWAYS | {"from": ELSEWHERE}, f"is in none of {ELSEWHERE}"),
        (ALWAYS | {"hours": around(6)}, f"is not in {around(6)}"),
        (ALWAYS | {"until": YESTERDAY}, f"{YESTERDAY} was the last day"),
    ],
    ids=["service", "network", "hours", "day"],
)
def test_a_knock_that_the_policy_refuses_is_denied_and_opens_nothing(world, under, grant, why):
    under({"groups": ["team"]}, groups={"team": grant})
    told = ask(world)
    assert (told["code"], told["leases"]) == ("denied", {})
    assert why in told["detail"]
    assert not world.reachable()
    if grant.get("services") == ["ssh"]:
        under(grant)
        assert ask(world)["code"] == "denied", "limits of the operator's own refuse as well"
        assert not world.reachable()


def test_the_same_knock_within_every_limit_opens_through_a_group_for_as_long_as_it_gives(
    world, under
):
    tomorrow = (NOW + dt.timedelta(days=2)).date().isoformat()
    limits = {"from": HERE, "hours": around(0), "until": tomorrow, "longest": 4}
    under({"groups": ["team"]}, groups={"team": ALWAYS | limits})
    told = ask(world, "--for", "10m")
    asked = time.monotonic()
    assert told["code"] == "opened", told
    assert world.reachable()
    assert not world.net.stranger.connects(world.address(), 22)
    eventually(lambda: not world.reachable(), 10)
    assert time.monotonic() - asked > 2, "it was open for a while"


def test_an_operator_s_own_longest_narrows_what_a_group_gives(world, under):
    team = {"team": ALWAYS | {"longest": 600}}
    under({"groups": ["team"], "longest": 100}, groups=team)
    told = ask(world, "--for", "10m")
    assert told["leases"]["ssh"] - told["t"] == pytest.approx(100, abs=2)


def test_days_and_hours_are_those_of_the_policy_s_time_zone(world, under):
    grant = ALWAYS | {"hours": around(12)}
    under(grant)
    assert ask(world)["code"] == "denied"
    assert not world.reachable()
    under(grant, timezone=EAST)
    assert ask(world)["code"] == "opened"
    assert world.reachable()


def test_an_operator_may_close_for_its_own_address_whatever_it_may_open(world, under):
    under(ALWAYS)
    assert ask(world, "--for", "60s")["code"] == "opened"
    under({"services": ["web"], "hours": around(6)})
    assert ask(world)["code"] == "denied"
    assert world.reachable(), "the lease of before lives on"
    world.knock("-4", "--service", "ssh", verb="close")
    assert not world.reachable()
