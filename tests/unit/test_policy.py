"""What a policy decides, and how it tells of mistakes and foolishness."""

import base64
import datetime as dt
import os
import re
import subprocess
import sys
import zoneinfo

import pytest

from tariq.agent import policy_file, schedule
from tariq.errors import PolicyError
from tariq.strict import Wrong

KEY = "0123456789ABCDEF0123456789ABCDEF0123456{}"
KNOCK_KEY = base64.b64encode(bytes(32)).decode()
BERLIN = zoneinfo.ZoneInfo("Europe/Berlin")
TEXT = """\
version: 1
serial: 3
host: web1
port: 62201
sentry_user: nobody
timezone: Europe/Berlin
services:
  ssh: {protocol: tcp, port: 22}
  web: {protocol: tcp, port: 443}
  db: {protocol: tcp, port: 5432}
default_service: ssh
groups:
  admins:
    services: [all]
    longest: 600
  oncall:
    services: [ssh, web]
    hours: [mon-fri 18:00-07:00, "sat,sun 00:00-24:00"]
    from: [203.0.113.0/24, "2001:db8::/32"]
    longest: 120
operators:
  alice: {fingerprint: KEY1, groups: [admins]}
  bob: {fingerprint: KEY2, groups: [oncall]}
  carol:
    fingerprint: KEY3
    groups: [admins, oncall]
    until: 2026-12-31
    longest: 60
  dave: {fingerprint: KEY4, services: [db], from: 198.51.100.7/32}
""".replace("KEY", KEY[:-2])


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "agent.yml"
    file.write_text(TEXT)
    return file


@pytest.fixture
def policy(path):
    return policy_file.load(path)


def at(text):
    return dt.datetime.fromisoformat(text).replace(tzinfo=BERLIN).timestamp()


THURSDAY_NOON, SATURDAY_3 = at("2026-11-26T12:00"), at("2026-11-28T03:00")
FRIDAY_LATE, MONDAY_EARLY = at("2026-11-27T23:00"), at("2026-11-30T03:00")
INSIDE, OUTSIDE = "203.0.113.9", "192.0.2.1"


@pytest.mark.parametrize(
    ("who", "what", "source", "when", "ok", "longest", "why"),
    [
        ("alice", "db", OUTSIDE, THURSDAY_NOON, True, 600, "by group admins"),
        ("bob", "ssh", INSIDE, THURSDAY_NOON, False, 0, "thu 12:00 is not in"),
        ("bob", "ssh", INSIDE, SATURDAY_3, True, 120, "by group oncall"),
        ("bob", "ssh", "2001:db8::9", SATURDAY_3, True, 120, "oncall"),
        ("bob", "ssh", OUTSIDE, SATURDAY_3, False, 0, "is in none of"),
        ("bob", "ssh", INSIDE, FRIDAY_LATE, True, 120, "oncall"),
        ("bob", "ssh", INSIDE, MONDAY_EARLY, False, 0, "mon 03:00"),
        ("bob", "db", INSIDE, SATURDAY_3, False, 0, "has no db among its services"),
        ("carol", "ssh", INSIDE, SATURDAY_3, True, 60, "by group admins"),
        ("carol", "ssh", INSIDE, at("2026-12-31T23:59"), True, 60, "admins"),
        ("carol", "ssh", INSIDE, at("2027-01-01T00:00"), False, 0, "2026-12-31 was the last day"),
        ("dave", "db", "198.51.100.7", THURSDAY_NOON, True, 3600, "by its own"),
        ("dave", "db", "198.51.100.8", THURSDAY_NOON, False, 0, "is in none of"),
    ],
)
def test_it_decides(policy, who, what, source, when, ok, longest, why):
    decision = policy.may(who, "services", what, source, when)
    assert (decision.ok, decision.longest) == (ok, longest)
    assert why in decision.why


def test_fifty_operators_and_twenty_services_stay_readable(tmp_path):
    """Names, not copies: one line per operator and per service, and two for their group."""
    lines = ["version: 1", "serial: 1", "host: h", "port: 62201", "services:"]
    lines += [f"  svc{n}: {{protocol: tcp, port: {1000 + n}}}" for n in range(20)]
    lines += ["groups:", "  team: {services: [all]}", "operators:"]
    lines += [f"  op{n}: {{fingerprint: '{n:040X}', groups: [team]}}" for n in range(50)]
    file = tmp_path / "agent.yml"
    file.write_text("\n".join(lines))
    assert policy_file.load(file).may("op49", "services", "svc19", INSIDE, 0).ok


def test_every_mistake_is_told_with_line_and_column(path):
    path.write_text(
        TEXT.replace("serial: 3", "serial: three")
        .replace("port: 443}", "port: 443, color: red}")
        .replace("longest: 600", "longest: 0")
        .replace("services: [db]", "services: [dba]")
        .replace("groups: [oncall]", "groups: [oncal]")
    )
    _, mistakes = policy_file.check(path)
    told = [str(each) for each in mistakes]
    lines = path.read_text().splitlines()
    for words, text in (
        ("serial", "serial:"),
        ("services.web.color", "color"),
        ("groups.admins.longest", "longest: 0"),
    ):
        [mistake] = [each for each in told if f": {words}:" in each]
        line, column = map(int, re.search(r"line (\d+), column (\d+)", mistake).groups())
        assert lines[line - 1][column - 1 :].startswith(text)
    path.write_text(
        path.read_text()
        .replace("serial: three", "serial: 3")
        .replace(", color: red", "")
        .replace("longest: 0", "longest: 1")
    )
    _, mistakes = policy_file.check(path)
    told = [str(each) for each in mistakes]
    assert any("operators.dave.services.0: no service 'dba'" in each for each in told)
    assert any("operators.bob.groups.0: no group 'oncal'" in each for each in told)
    assert all("line" in each for each in told)


def test_mistakes_of_fields_hide_no_mistakes_of_names(path):
    path.write_text(
        TEXT.replace("serial: 3", "serial: three")
        .replace("{protocol: tcp, port: 443}", "{protocol: tcpp, port: 443}")
        .replace("port: 5432}", "port: 62201}")
        .replace("services: [ssh, web]", "services: [SSH, wep]")
        .replace("groups: [admins, oncall]", "groups: [admins, oncal]")
    )
    _, mistakes = policy_file.check(path)
    told = [str(each).partition(": ")[2] for each in mistakes]
    assert [each.partition(": ")[0] for each in told] == [
        "serial",
        "services.web.protocol",
        "groups.oncall.services.0",
        "services.db.port",
        "operators.carol.groups.1",
        "groups.oncall.services.1",
    ], told


@pytest.mark.parametrize("at", range(len(TEXT.splitlines())))
@pytest.mark.parametrize("wreck", ["", "  x: 1", "  services: {web: 5, ssh: }", "tasks: {t: 1}"])
def test_a_wrecked_line_is_a_mistake_with_a_place_or_none(path, at, wreck):
    """Whatever is missing or of another kind, what is looked up in it afterwards doesn't fail."""
    lines = TEXT.splitlines()
    lines[at] = wreck
    path.write_text("\n".join(lines))
    try:
        _, mistakes = policy_file.check(path)
    except PolicyError as why:
        mistakes = [why]
    assert all(re.search(r"line \d+, column \d+", str(each)) for each in mistakes)


@pytest.mark.parametrize(
    ("old", "new", "place", "says"),
    [
        ("until: 2026-12-31", "until: 2027-02-30", "until:", "not a day such as"),
        ("until: 2026-12-31", "until: 2027-W05", "until:", "not a day such as"),
        ("port: 443", "port: {{ knock_port }}", "{ knock", "needs quotes"),
        ("port: 443", f"port: {'9' * 6000}", "port: 9", "whole number from 1 to 65535"),
        ("host: web1", "host: we\0b1", "\0b1", "character"),
        ("host: web1", "host: !!bool maybe", "!!bool", "not a value of !!bool"),
        ("port: 443", "port: 0443", "port: 0443", "digits only"),
        ("port: 443", "port: 7:23", "port: 7:23", "digits only"),
        ("port: 443", 'port: "443"', "port: ", "digits only"),
        ("port: 443", "port: 4_43", "port: 4_43", "digits only"),
        ("longest: 600", "longest: 1:30:00", "longest: 1", "a whole number of seconds"),
        ("longest: 600", "longest: 10m", "longest: 10m", "a whole number of seconds"),
    ],
)
def test_what_yaml_would_read_as_something_else_is_a_mistake_at_its_place(
    path, old, new, place, says
):
    path.write_text(TEXT.replace(old, new))
    try:
        policy, mistakes = policy_file.check(path)
        assert policy is None
    except PolicyError as why:
        mistakes = [why]
    [told] = map(str, mistakes)
    assert says in told
    line, column = map(int, re.search(r"line (\d+), column (\d+)", told).groups())
    assert path.read_text().splitlines()[line - 1][column - 1 :].startswith(place), told


def test_numbers_may_be_hexadecimal_and_what_is_no_number_is_text(path):
    """As it stands there, that is: neither 18 nor 5400."""
    task = "tasks: {t: {argv: [/bin/true, 022, 1:30:00], user: nobody}}"
    path.write_text(TEXT.replace("port: 62201", f"port: 62201\nmark: 0x10\n{task}"))
    policy = policy_file.load(path)
    assert policy.mark == 16
    assert policy.tasks["t"].argv == ("/bin/true", "022", "1:30:00")


def test_a_file_that_is_not_utf_8_is_told_where(path):
    path.write_bytes(TEXT.replace("host: web1", "host: w\xe4b").encode("latin-1"))
    with pytest.raises(PolicyError, match=r"line 3: not utf-8 text; save it as utf-8"):
        policy_file.check(path)


def test_a_single_error_tells_of_the_first_and_counts_the_others(path):
    path.write_text(TEXT.replace("serial: 3", "serial: 0").replace("port: 62201", "port: 0"))
    with pytest.raises(PolicyError, match=r"line 2, column 1: serial: .*tells of 1 more"):
        policy_file.load(path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("hours: [mon-fri 18:00-07:00", "hours: [mon-fry 18:00-07:00"), "no day"),
        (("hours: [mon-fri 18:00-07:00", "hours: [mon-fri 18:00-25:00"), "00:00 to 24:00"),
        (("hours: [mon-fri 18:00-07:00", "hours: [always"), "days and hours such as"),
        (("203.0.113.0/24", "203.0.113.9/24"), "not a network"),
        (("until: 2026-12-31", "until: soon"), "not a day such as"),
        (("Europe/Berlin", "Europe/Berlim"), "not a time zone"),
        (("port: 62201", "port: 62201\ninterfaces: [eth0, a-name-too-long0]"), "network interface"),
        (("port: 62201", "port: 62201\ninterfaces: []"), "not a list of at least 1"),
        (("Europe/Berlin", "../../etc/passwd"), "not a time zone"),
        (("sentry_user: nobody", "sentry_user: root"), "must not be root"),
        (("version: 1", "version: 2"), "version: not 1"),
        (("203.0.113.0/24", '"::ffff:203.0.113.0/120"'), "matches nobody; write 203.0.113.0/24"),
        (("host: web1", 'host: "web\\n1"'), "not a host's name"),
        (("host: web1", f"host: {'w' * 300}"), "not a host's name"),
        (
            (
                "  ssh: {protocol: tcp, port: 22}",
                "  ssh: {protocol: tcp, port: 22}\n  all: {protocol: tcp, port: 9}",
            ),
            "stands for every service",
        ),
    ],
)
def test_mistakes_are_told_in_plain_words(path, change, says):
    path.write_text(TEXT.replace(*change))
    policy, mistakes = policy_file.check(path)
    assert policy is None
    assert says in str(mistakes[0])


def test_what_is_foolish_is_warned_of(path):
    path.write_text(
        TEXT.replace("services: [all]", "services: [db]")
        .replace("services: [ssh, web]", "services: [web]")
        .replace("longest: 120", "longest: 100000")
        .replace("groups: [admins]", "groups: []")
    )
    found = list(policy_file.warnings(policy_file.load(path), dt.date(2027, 6, 1)))
    assert "services.ssh: no operator may open it: nobody could log in" in found
    assert "operators.alice: may do nothing" in found
    assert any("carol: the last day of its own was 2026-12-31" in each for each in found)
    assert any("bob: leases of group oncall may last longer than a day" in each for each in found)
    path.write_text(TEXT)
    assert list(policy_file.warnings(policy_file.load(path), dt.date(2026, 6, 1))) == []


def warned(path, old, new, today=dt.date(2026, 6, 1), text=TEXT):
    """Return the warnings about a policy with something in place of something else."""
    assert old in text
    path.write_text(text.replace(old, new))
    return list(policy_file.warnings(policy_file.load(path), today))


def test_a_service_that_only_those_may_open_whose_last_day_is_over_is_nobody_s(path):
    groups = TEXT.replace("services: [all]", "services: [db]")
    one = {"path": path, "old": "    longest: 120", "text": groups}
    found = warned(new="    longest: 120\n    until: 2026-05-31", **one)
    assert "services.ssh: no operator may open it: nobody could log in" in found
    assert "default_service: no operator may open it, so every bare knock is denied" in found
    assert warned(new="    longest: 120\n    until: 2026-06-01", **one) == []


def test_names_beside_all_or_twice_are_warned_of(path):
    found = warned(path, "services: [db]", "services: [db, ssh, db]")
    assert found == ["operators.dave.services: a name twice"]
    found = warned(path, "services: [all]", "services: [all, ssh]")
    assert found == ["groups.admins.services: all, and others that are among all"]


def test_one_thing_needs_no_list(path):
    path.write_text(
        TEXT.replace("services: [all]", "services: all").replace(
            "groups: [admins]", "groups: admins"
        )
    )
    assert policy_file.load(path).may("alice", "services", "db", OUTSIDE, THURSDAY_NOON).ok


def test_break_glass_for_everybody_in_pieces_is_warned_of(path):
    halves = "port: 62201\nbreak_glass: [0.0.0.0/1, 128.0.0.0/1, 192.0.2.0/24]"
    says = "break_glass: 0.0.0.0/0 is everybody: nothing is guarded from them"
    assert warned(path, "port: 62201", halves) == [says]


def test_a_name_that_yaml_takes_for_something_else_is_told_where_it_stands(path):
    """``no`` is false, and 2026 a number."""
    path.write_text(
        TEXT.replace("  web: {", "  no: {").replace("services: [ssh, web]", "services: no")
    )
    _, mistakes = policy_file.check(path)
    lines = path.read_text().splitlines()
    for where, begins in (
        ("services.False", "  no: {"),
        ("groups.oncall.services", "    services: no"),
    ):
        [told] = [str(each) for each in mistakes if f": {where}: " in str(each)]
        assert "yaml reads it as False; put it in quotes" in told
        line, column = map(int, re.search(r"line (\d+), column (\d+)", told).groups())
        assert lines[line - 1].startswith(begins)
        assert column == len(begins) - len(begins.lstrip()) + 1


def tariq(*words):
    command = [sys.executable, "-m", "tariq", "agent", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_explain_says_yes_or_no_and_why(path):
    told = tariq("explain", "bob", "open", "ssh", "from", INSIDE, "at", "sat 03:00", "--file", path)
    assert told.returncode == 0, told.stderr
    assert told.stdout.startswith("yes: by group oncall, for 120 s at most (Sat ")
    told = tariq(
        "explain", "bob", "open", "ssh", "from", OUTSIDE, "at", "sat 03:00", "--file", path
    )
    assert told.returncode == 1
    assert told.stdout.startswith("no: group oncall: 192.0.2.1 is in none of")
    told = tariq(
        "explain", "bob", "open", "ssh", "at", "2026-11-30 12:00", "from", INSIDE, "--file", path
    )
    assert "mon 12:00 is not in" in told.stdout
    for words in (
        ["eve", "open", "ssh"],
        ["bob", "open", "ssh", "at", "noon"],
        ["bob", "open", "ssh", "by", "car"],
        ["bob", "open", "ssh", "from", "home"],
        ["bob", "open", "ssh", "from", INSIDE, "from", OUTSIDE],
    ):
        told = tariq("explain", *words, "--file", path)
        assert told.returncode == 2, words
        assert told.stderr.count("\n") == 1
        assert "Traceback" not in told.stderr


def test_explain_asks_for_the_address_where_it_depends_on_that(path):
    told = tariq("explain", "bob", "open", "ssh", "at", "sat 03:00", "--file", path)
    assert (told.returncode, told.stdout) == (2, "")
    assert "from: not named, and it depends on the address" in told.stderr
    assert tariq("explain", "alice", "open", "ssh", "--file", path).returncode == 0


def test_explain_tells_of_what_else_an_open_door_takes(path):
    """What the agent itself would look at: source named, family of a host behind, break-glass."""
    path.write_text(
        FIREWALL.replace("[10.0.0.5:22, '[fd00::5]:23']", "10.0.0.5:22").replace(
            "port: 62201", "port: 62201\nrequire_source: true"
        )
    )
    told = tariq("explain", "alice", "open", "db", "from", "2001:db8:1::9", "--file", path)
    assert told.returncode == 1
    assert told.stdout.startswith("no: db is at 10.0.0.5:22, without IPv6: knock with -4")
    told = tariq("explain", "alice", "open", "db", "from", "198.51.100.9", "--file", path)
    assert told.returncode == 0
    assert "the knock must name its address (--source)" in told.stdout
    told = tariq("explain", "alice", "open", "db", "from", "192.0.2.9", "--file", path)
    assert "192.0.2.9 needs no lease: it is in break_glass" in told.stdout


@pytest.mark.parametrize(
    ("text", "then"),
    [
        ("thu 12:00", "2026-11-26T12:00"),
        ("thu 11:59", "2026-12-03T11:59"),
        ("12:00", "2026-11-26T12:00"),
        ("03:00", "2026-11-27T03:00"),
        ("fri 03:00", "2026-11-27T03:00"),
        ("2026-01-02 03:00", "2026-01-02T03:00"),
    ],
)
def test_a_moment_without_a_date_is_the_next_one(text, then):
    now = dt.datetime(2026, 11, 26, 12, 0, 30, tzinfo=BERLIN)
    assert schedule.moment(text, BERLIN, now) == dt.datetime.fromisoformat(then).replace(
        tzinfo=BERLIN
    )


def test_explain_says_that_whoever_is_an_operator_may_close(path):
    """The warden asks no grant for it, only for an address: their own."""
    for who, what, when in (("dave", "web", "sat 03:00"), ("carol", "ssh", "2031-01-01 03:00")):
        told = tariq("explain", who, "close", what, "from", OUTSIDE, "at", when, "--file", path)
        assert told.returncode == 0, told.stderr
        assert told.stdout == "yes: an operator may always close for its own address\n"
    assert tariq("explain", "dave", "close", "sh", "--file", path).returncode == 2


def test_check_tells_every_mistake_on_a_line_of_its_own(path):
    path.write_text(TEXT.replace("serial: 3", "serial: 0").replace("port: 62201", "port: 0"))
    told = tariq("check", path)
    assert told.returncode == 9
    assert len(told.stderr.splitlines()) == 2


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        (
            "mon-fri 07:00-19:00",
            ["2026-11-23T07:00", "2026-11-27T18:59"],
            ["2026-11-23T06:59", "2026-11-27T19:00", "2026-11-28T12:00"],
        ),
        (
            "fri 22:00-06:00",
            ["2026-11-27T22:00", "2026-11-28T05:59"],
            ["2026-11-27T05:00", "2026-11-28T06:00", "2026-11-28T22:30"],
        ),
        ("sat-mon 00:00-24:00", ["2026-11-28T00:00", "2026-11-30T23:59"], ["2026-11-27T23:59"]),
        ("daily 12:00-12:00", ["2026-11-28T11:00", "2026-11-28T13:00"], []),
    ],
)
def test_spans(text, inside, outside):
    span = schedule.span(text)
    assert all(span.holds(dt.datetime.fromisoformat(each)) for each in inside)
    assert not any(span.holds(dt.datetime.fromisoformat(each)) for each in outside)


@pytest.mark.parametrize(
    "bad", [None, 5, "mon", "mon 7:00-8:00", "mon 07:60-08:00", "MON 07:00-08:00"]
)
def test_what_is_no_span(bad):
    with pytest.raises(Wrong):
        schedule.span(bad)


@pytest.fixture
def as_root():
    if os.geteuid() != 0:
        pytest.skip("needs root (make test asks for it)")


@pytest.fixture
def etc(tmp_path, path):
    """A host's directory: alice's key expired long ago, eve's is nobody's, others aren't there."""
    home = tmp_path / "g"
    home.mkdir(mode=0o700)
    gpg = ["gpg", "--homedir", home, "--batch", "--quiet", "--passphrase", ""]
    made = {}
    try:
        for name, more in (("alice", ["--faked-system-time", "20200101T000000!"]), ("eve", [])):
            subprocess.run(
                [*gpg, *more, "--quick-gen-key", name, "ed25519", "sign", "1y"],
                check=True,
                capture_output=True,
            )
            listed = subprocess.run(
                [*gpg, "--with-colons", "--list-keys", name],
                check=True,
                capture_output=True,
                text=True,
            ).stdout
            made[name] = re.search(r"^fpr:+([0-9A-F]+):", listed, re.MULTILINE)[1]
            armoured = subprocess.run(
                [*gpg, "--armor", "--export", name], check=True, capture_output=True
            ).stdout
            (tmp_path / "operators").mkdir(exist_ok=True)
            (tmp_path / "operators" / f"{name}.asc").write_bytes(armoured)
    finally:
        subprocess.run(["gpgconf", "--homedir", home, "--kill", "all"], check=False)
    path.write_text(TEXT.replace(KEY[:-2] + "1", made["alice"]))
    (tmp_path / "knock.key").write_text(KNOCK_KEY)
    return tmp_path, made


def only(operator, path):
    """Leave out of the policy who isn't that operator."""
    kept, _, rest = path.read_text().partition("operators:\n")
    path.write_text(kept + "operators:\n" + re.search(rf"  {operator}: .*\n", rest)[0])


def test_keys_that_are_expired_or_nobody_s_are_warned_of(etc, path, as_root):
    """Real keys, and the policy of the host itself."""
    only("alice", path)
    told = tariq("check", "--etc", etc[0])
    assert told.returncode == 0, told.stderr
    assert "warning: operators.alice: its key is expired" in told.stdout
    assert f"key {etc[1]['eve']} is nobody's" in told.stdout


@pytest.mark.parametrize("named", [False, True])
def test_check_refuses_a_host_s_policy_that_names_a_key_that_is_not_there(
    etc, path, named, as_root
):
    """The agent doesn't start with it, so what systemd asks before a start must not say good."""
    told = tariq("check", *([path] if named else []), "--etc", etc[0])
    assert told.returncode == 9
    assert "good" not in told.stdout
    assert len(told.stderr.splitlines()) == 3
    [bob] = [
        each for each in told.stderr.splitlines() if "operators.bob.fingerprint: no key" in each
    ]
    line, column = map(int, re.search(r"line (\d+), column (\d+)", bob).groups())
    assert path.read_text().splitlines()[line - 1][column - 1 :].startswith("fingerprint: ")
    elsewhere = path.with_name("draft.yml")
    elsewhere.write_text(path.read_text())
    told = tariq("check", elsewhere, "--etc", etc[0])
    assert (told.returncode, told.stderr) == (0, ""), "a draft's keys may come after it"


def test_check_refuses_a_host_s_policy_whose_sentry_has_no_user(path):
    path.write_text(TEXT.replace("sentry_user: nobody", "sentry_user: not-here"))
    told = tariq("check", path)
    assert told.returncode == 0
    assert "warning: sentry_user: no user 'not-here' on this machine" in told.stdout
    (path.parent / "knock.key").write_text(KNOCK_KEY)
    told = tariq("check", "--etc", path.parent)
    assert told.returncode == 9
    assert "sentry_user: no user 'not-here' on this machine; useradd --system" in told.stderr


FIREWALL = TEXT.replace(
    "port: 62201",
    "port: 62201\nfirewall: iptables\nmark: 0x10\nbreak_glass: [192.0.2.0/24, '2001:db8::/64']",
).replace(
    "{protocol: tcp, port: 5432}",
    "{protocol: tcp, port: 5432, forward: [10.0.0.5:22, '[fd00::5]:23'], masquerade: true}",
)


def test_fields_of_the_firewall(path):
    path.write_text(FIREWALL)
    policy = policy_file.load(path)
    assert (policy.firewall, policy.mark) == ("iptables", 16)
    assert [str(each) for each in policy.break_glass] == ["192.0.2.0/24", "2001:db8::/64"]
    db = policy.services["db"]
    assert [str(each) for each in db.forward] == ["10.0.0.5:22", "[fd00::5]:23"]
    assert (db.forward_of(6).port, db.masquerade) == (23, True)
    path.write_text(FIREWALL.replace("[10.0.0.5:22, '[fd00::5]:23']", "10.0.0.5:22"))
    assert policy_file.load(path).services["db"].forward_of(6) is None


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("firewall: iptables", "firewall: ufw", "not one of auto, nftables"),
        ("mark: 0x10", "mark: 0", "whole number from 1"),
        ("192.0.2.0/24", "192.0.2.1/24", "not a network"),
        ("10.0.0.5:22", "10.0.0.5", "not a place such as"),
        ("10.0.0.5:22", "fd00::5:22", "not a place such as"),
        ("10.0.0.5:22", "0.0.0.0:22", "not the address of another host"),
        ("10.0.0.5:22", "127.0.0.1:22", "not the address of another host"),
        ("10.0.0.5:22", "224.0.0.1:22", "not the address of another host"),
        ("10.0.0.5:22", "255.255.255.255:22", "not the address of another host"),
        ("'[fd00::5]:23'", "'[::1]:23'", "not the address of another host"),
        ("'[fd00::5]:23'", "'[::ffff:10.0.0.5]:23'", "not the address of another host"),
        ("10.0.0.5:22", "10.0.0.256:22", "not a place such as"),
        ("10.0.0.5:22", "10.0.0.5:99999", "not a whole number"),
        ("'[fd00::5]:23'", "10.0.0.6:22", "two places of the same ip version"),
        ("forward: [10.0.0.5:22, '[fd00::5]:23'], ", "", "only for a service with 'forward'"),
        ("port: 443", "port: 22", "ssh has the same protocol and port"),
        ("longest: 600", "longest: 2073601", "a whole number of seconds from 1 to 2073600"),
    ],
)
def test_mistakes_about_the_firewall(path, old, new, says):
    path.write_text(FIREWALL.replace(old, new))
    with pytest.raises(PolicyError, match=says):
        policy_file.load(path)


@pytest.mark.parametrize("everybody", ["0.0.0.0/0", "::/0"])
def test_break_glass_for_everybody_is_warned_of(path, everybody):
    path.write_text(FIREWALL.replace("192.0.2.0/24", f"'{everybody}'"))
    found = list(policy_file.warnings(policy_file.load(path), dt.date(2026, 11, 24)))
    assert f"break_glass: {everybody} is everybody: nothing is guarded from them" in found
    path.write_text(FIREWALL)
    found = list(policy_file.warnings(policy_file.load(path), dt.date(2026, 11, 24)))
    assert not any("break_glass" in each for each in found)
