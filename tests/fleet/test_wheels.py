"""`tariq_wheels`, on a controller without any network: a directory of wheels, and an index.

The scenario `upgrade` installs hosts out of both; here is what pip may look at meanwhile.
"""

import json
import os
import subprocess
import sys

import pytest
from galaxy import REPO

SERVED = """
ip link set lo up
if [ -n "$INDEX" ]; then
  "$PYTHON" -m http.server --bind 127.0.0.1 --directory "$INDEX" 8901 >/dev/null 2>&1 &
  trap "kill $!" EXIT
  for i in $(seq 100); do
    "$PYTHON" -c "import socket; socket.create_connection(('127.0.0.1', 8901))" 2>/dev/null && break
    sleep 0.1
  done
fi
"$PYTHON" tools/wheelhouse.py "$@"
"""


@pytest.fixture(scope="module")
def wheels(fleet, tmp_path_factory):
    """What the deployment to the fleet has collected; the place has a space in it."""
    there = REPO / ".wheelhouse" / f"cp311-{os.uname().machine}"
    folder = tmp_path_factory.mktemp("all wheels")
    for wheel in there.glob("*.whl"):
        (folder / wheel.name).symlink_to(wheel)
    return folder


@pytest.fixture
def collect(wheels, tmp_path):
    """Run the role's tool in a network namespace of its own, which leads nowhere."""

    def told(source, *words, index=""):
        [ours] = wheels.glob("tariq-*.whl")
        words = words or ("--wheel", ours.resolve())
        command = ["unshare", "--net", "sh", "-c", SERVED, "sh", "--into", tmp_path / "into"]
        command += ["--python", "3.11", "--wheels", source, *words]
        # Where pip would look by itself: all that is asked for is there.
        configured = {"PIP_FIND_LINKS": wheels.as_uri(), "PIP_NO_INDEX": ""}
        return subprocess.run(
            [str(word) for word in command],
            cwd=REPO,
            env={**os.environ, **configured, "PYTHON": sys.executable, "INDEX": str(index)},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    return told


def less(wheels, into, name=str):
    """Make a directory of all but one, ``name`` by ``name``."""
    for wheel in wheels.glob("*.whl"):
        folder = into / name(wheel.name.split("-")[0].replace("_", "-"))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / wheel.name).symlink_to(wheel.resolve())
    return into


def test_a_directory_is_all_that_is_needed(collect, wheels):
    done = collect(wheels)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["changed"]


def test_an_index_is_all_that_is_needed(collect, wheels, tmp_path):
    less(wheels, tmp_path / "index" / "simple")
    done = collect("http://127.0.0.1:8901/simple/", index=tmp_path / "index")
    assert done.returncode == 0, done.stderr


def test_what_is_missing_there_is_taken_from_nowhere_else(collect, wheels, tmp_path):
    folder = less(wheels, tmp_path / "less", lambda _: "")
    next(folder.glob("scapy-*")).unlink()
    done = collect(folder)
    assert done.returncode == 1
    assert "there is no wheel of scapy" in done.stderr
    index = less(wheels, tmp_path / "index" / "simple")
    next(index.glob("scapy/*")).unlink()
    done = collect("http://127.0.0.1:8901/simple/", index=index.parent)
    assert done.returncode == 1
    assert "there is no wheel of scapy" in done.stderr


@pytest.mark.parametrize(("python", "arch"), [("3.12", "aarch64"), ("3.14", "x86_64")])
def test_hosts_of_other_kinds_have_wheels(python, arch, tmp_path):
    """Ubuntu 24.04 on arm64, and a Python later than any here; from the index that pip knows."""
    ours = tmp_path / "tariq-0-py3-none-any.whl"
    ours.touch()
    command = [sys.executable, "tools/wheelhouse.py", "--into", tmp_path / "into"]
    command += ["--python", python, "--arch", arch, "--wheel", ours]
    done = subprocess.run(
        command, cwd=REPO, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    kind = f"-cp{python.replace('.', '')}-*_{arch}.whl"
    for compiled in ("google_re2", "pillow", "pyyaml"):
        assert list((tmp_path / "into").glob(f"*/{compiled}-*{kind}")), compiled


def test_without_hatchling_it_says_what_to_do(collect, wheels):
    done = collect(wheels, "--wait", "60")
    assert done.returncode == 1
    assert "or name a ready wheel in tariq_wheel" in done.stderr
