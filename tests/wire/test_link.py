"""The socket that a sentry comes to where systemd starts it."""

import asyncio
import pwd
import socket
import subprocess

import pytest
from lab import NOBODY, scratch

from tariq.agent.policy import Policy
from tariq.agent.sentinel import Sentinel

RULES = Policy(1, "web1", 7, services={}, operators={}, sentry_user=NOBODY)
SENTRY = """
import socket, sys
link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
link.connect(sys.argv[1])
assert b"knock_key" in link.recv(8192)
link.send(b"ready")
link.recv(1)
"""


@pytest.fixture
def path():
    with scratch() as base:
        yield base / "run" / "sentry.sock"


def dial(path) -> socket.socket:
    link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    link.settimeout(5)
    link.connect(str(path))
    return link


def as_user(user: str, path) -> subprocess.Popen[bytes]:
    entry = pwd.getpwnam(user)
    command = ["/usr/bin/python3", "-I", "-c", SENTRY, str(path)]
    return subprocess.Popen(
        command, user=entry.pw_uid, group=entry.pw_gid, extra_groups=[], stderr=subprocess.PIPE
    )


def test_its_mode_keeps_others_away(path):
    sentinel = Sentinel(RULES, [b"k" * 32], path)
    assert path.stat().st_mode & 0o777 == 0o660
    assert path.stat().st_gid == pwd.getpwnam(NOBODY).pw_gid
    with as_user("daemon", path) as stranger:
        assert b"Permission denied" in stranger.communicate(timeout=10)[1]
    sentinel.stop()


def test_another_user_s_link_is_closed_and_the_sentry_s_is_taken(path):
    """Root passes any mode, and still isn't the sentry."""
    sentinel = Sentinel(RULES, [b"k" * 32], path)

    async def run() -> bytes:
        starting = asyncio.create_task(sentinel.start())
        with dial(path) as wrong:
            told = await asyncio.to_thread(wrong.recv, 100)
        with as_user(NOBODY, path) as right:
            await asyncio.wait_for(starting, 10)
            sentinel.stop()
            await asyncio.to_thread(right.wait, 10)
        assert right.returncode == 0
        return told

    assert asyncio.run(run()) == b"", "closed without a word"


def test_a_socket_that_was_left_over_is_no_obstacle(path):
    both = [Sentinel(RULES, [b"k" * 32], path) for _ in range(2)]
    with dial(path):
        assert len(both) == 2, "and they are kept until here"
