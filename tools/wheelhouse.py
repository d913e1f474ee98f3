#!/usr/bin/env python3
"""Collect, on the controller, all that one kind of host needs to install the agent.

A kind of host is a Python version and an architecture. The result is a directory
`.wheelhouse/cp311-x86_64/` with Tariq's own wheel, built from this checkout, and every wheel
that `requirements/agent.lock` pins; and beside it one tar file with the same, because one file
travels to a host faster than ten. Hosts then need no package index and no network.

The work is done only if something changed: the sources (their hash), the lock file, or a file
in the directory. Prints one JSON object; every error is one line and ends with status 1.

Only the standard library and pip are needed.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parent.parent
# glibc 2.28 is older than that of every supported host (Debian 12 has 2.36), so all of these run.
PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014")
ARCHITECTURES = ("x86_64", "aarch64")
# A wheel is a zip file, and those can't hold times before 1980: this is 1 February 1980.
SOURCE_DATE_EPOCH = "318211200"
PIP_TIMEOUT = 600
MANIFEST = "manifest.json"
# Raise this if the layout of the directory changes, so that old ones are made anew.
LAYOUT = 1


class WheelhouseError(Exception):
    """What went wrong, in one line, with the next step."""


def digest(path: Path) -> str:
    """Return the SHA-256 of a file as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sources(checkout: Path) -> list[Path]:
    """List what the project's wheel is made of, in a fixed order."""
    pyproject = checkout / "pyproject.toml"
    package = checkout / "tariq"
    if not pyproject.is_file() or not package.is_dir():
        raise WheelhouseError(
            f"{checkout} is not a checkout of tariq: it has no pyproject.toml and tariq/ in it; "
            "run this from a checkout, or name one with --checkout"
        )
    found = [pyproject]
    found += [checkout / name for name in ("README.md", "LICENSE") if (checkout / name).is_file()]
    found += [
        path
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"
    ]
    return sorted(found)


def sources_digest(checkout: Path, files: list[Path]) -> str:
    """Return one hash over names and contents of the sources."""
    total = hashlib.sha256()
    for path in files:
        name = path.relative_to(checkout).as_posix()
        total.update(f"{name}\0{digest(path)}\n".encode())
    return total.hexdigest()


def only_from(source: str, empty: Path) -> dict[str, str]:
    """Return settings with which pip looks nowhere else, whatever its configuration names.

    ``source`` is a directory of wheels or an index's address. Variables count more than pip's
    files, and an empty one counts for nothing: hence ``empty``, a directory without wheels.
    """
    if not source:
        return {}
    if "://" in source:
        index = {"PIP_INDEX_URL": source, "PIP_EXTRA_INDEX_URL": source, "PIP_NO_INDEX": "0"}
        return {**index, "PIP_FIND_LINKS": empty.as_uri()}
    if not Path(source).is_dir():
        raise WheelhouseError(f"{source}: no such directory; name one that has the wheels")
    # As an address, because pip takes a space for the end of a path.
    return {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": Path(source).resolve().as_uri()}


def run_pip(arguments: list[str], what: str, settings: dict[str, str]) -> None:
    """Run pip with this interpreter; turn its failure into one line."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    fixed = {"SOURCE_DATE_EPOCH": SOURCE_DATE_EPOCH, "LC_ALL": "C.UTF-8"}
    environment = {**os.environ, **settings, **fixed}
    try:
        done = subprocess.run(
            [*command, *arguments],
            check=False,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=PIP_TIMEOUT,
            env=environment,
        )
    except subprocess.TimeoutExpired as error:
        raise WheelhouseError(
            f"{what}: pip was not done after {PIP_TIMEOUT} seconds; "
            "check the way to the package index and run this again"
        ) from error
    if done.returncode == 0:
        return
    if "No module named pip" in done.stderr:
        raise WheelhouseError(
            f"{what}: {sys.executable} has no pip; install it with "
            f"'{sys.executable} -m ensurepip' (or your system's python3-pip)"
        )
    raise WheelhouseError(f"{what}: {pip_reason(done.stderr)}")


def pip_reason(output: str) -> str:
    """Pick the line of pip's errors that says what is missing."""
    errors = [
        line.strip().removeprefix("ERROR: ")
        for line in output.splitlines()
        if line.strip().startswith("ERROR: ")
    ]
    for line in errors:
        if match := re.match(r"No matching distribution found for ([^\s(]+)", line):
            return (
                f"there is no wheel of {match[1]} for this Python and architecture whose hash is "
                "in the lock file; look whether the package index can be reached and has it"
            )
    if errors:
        return errors[0]
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[-1] if lines else "pip failed and said nothing"


def build_wheel(
    checkout: Path, files: list[Path], into: Path, settings: dict[str, str], source: str
) -> Path:
    """Build the project's wheel out of a clean copy of its sources."""
    more = (
        f" (with hatchling from {source}; or name a ready wheel in tariq_wheel)" if source else ""
    )
    with tempfile.TemporaryDirectory(prefix="tariq-build-") as name:
        copy = Path(name) / "tariq"
        for path in files:
            target = copy / path.relative_to(checkout)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        run_pip(
            [
                "wheel",
                "--quiet",
                "--no-deps",
                "--no-cache-dir",
                "--wheel-dir",
                str(into),
                str(copy),
            ],
            f"cannot build tariq's wheel{more}",
            settings,
        )
    wheels = sorted(into.glob("tariq-*.whl"))
    if len(wheels) != 1:
        raise WheelhouseError(
            f"cannot build tariq's wheel: pip made {len(wheels)} instead of one; "
            "look at [build-system] and [tool.hatch] in pyproject.toml"
        )
    return wheels[0]


def take_wheel(given: Path, into: Path) -> Path:
    """Take a wheel of the project that somebody has built."""
    return Path(shutil.copyfile(given, into / given.name))


def download(
    lock: Path, python: str, architecture: str, into: Path, settings: dict[str, str]
) -> None:
    """Fetch the pinned wheels, for the host's Python and architecture and not this machine's."""
    platforms = [f"--platform={name}_{architecture}" for name in PLATFORMS]
    run_pip(
        [
            *("download", "--quiet", "--no-deps", "--only-binary=:all:", "--require-hashes"),
            *("--implementation=cp", f"--python-version={python}", *platforms),
            *("--dest", str(into), "--requirement", str(lock)),
        ],
        f"cannot collect the wheels for python {python} on {architecture}",
        settings,
    )


def distribution(wheel: Path) -> tuple[str, str]:
    """Return name (normalised) and version out of a wheel's file name."""
    name, version = wheel.name.split("-")[:2]
    return re.sub(r"[-_.]+", "-", name).lower(), version


def pinned(lock: Path) -> dict[str, str]:
    """Return what the lock file pins: name -> version."""
    try:
        text = lock.read_text(encoding="utf-8")
    except OSError as error:
        raise WheelhouseError(
            f"cannot read {lock}: {error.strerror}; make it with requirements/compile"
        ) from error
    pins: dict[str, str] = {}
    for line in text.splitlines():
        match = re.match(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([^\s;\\]+)", line)
        if not match:
            continue
        if ";" in line:
            # pip would look at this machine's Python and not at the host's.
            raise WheelhouseError(
                f"{lock}: {match[1]} is pinned for some hosts only, which this tool can't decide; "
                "give the package one pin for all"
            )
        pins[re.sub(r"[-_.]+", "-", match[1]).lower()] = match[2]
    if not pins:
        raise WheelhouseError(f"{lock} pins nothing; make it anew with requirements/compile")
    return pins


def complete(directory: Path, wanted: dict[str, Any]) -> dict[str, Any] | None:
    """Return the manifest of a directory that is whole and up to date, or None."""
    try:
        manifest: dict[str, Any] = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        if any(manifest.get(key) != value for key, value in wanted.items()):
            return None
        files: dict[str, str] = manifest["files"]
        if {path.name for path in directory.iterdir()} != {*files, MANIFEST}:
            return None
        if any(digest(directory / name) != value for name, value in files.items()):
            return None
        bundle = directory.with_name(directory.name + ".tar")
        if digest(bundle) != manifest["bundle_sha256"]:
            return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # Absent, half-made or damaged: all the same, it is made anew.
    return manifest


def pack(directory: Path, bundle: Path) -> None:
    """Put the directory's files into one tar file; the same files give the same bytes."""

    def plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.uid = entry.gid = 0
        entry.uname = entry.gname = "root"
        entry.mtime = int(SOURCE_DATE_EPOCH)
        entry.mode = 0o644
        return entry

    with tarfile.open(bundle, "w", format=tarfile.USTAR_FORMAT) as archive:
        for path in sorted(directory.iterdir()):
            if path.name != MANIFEST:
                archive.add(path, arcname=path.name, filter=plain)


def make(
    checkout: Path,
    files: list[Path],
    *,
    python: str,
    architecture: str,
    wanted: dict[str, Any],
    final: Path,
    given: Path | None = None,
    source: str = "",
) -> dict[str, Any]:
    """Make the directory and its tar file beside the old ones and change over at the end."""
    lock = checkout / "requirements" / "agent.lock"
    pins = pinned(lock)
    with tempfile.TemporaryDirectory(prefix=f".{final.name}-", dir=final.parent) as name:
        fresh, empty = Path(name) / final.name, Path(name) / "empty"
        fresh.mkdir()
        empty.mkdir()
        settings = only_from(source, empty)
        if given:
            wheel = take_wheel(given, fresh)
        else:
            wheel = build_wheel(checkout, files, fresh, settings, source)
        version = distribution(wheel)[1]
        download(lock, python, architecture, fresh, settings)
        have = dict(distribution(path) for path in fresh.glob("*.whl") if path != wheel)
        for package, pin in pins.items():
            if package not in have:
                raise WheelhouseError(
                    f"the wheel of {package} {pin} is missing for python {python} on "
                    f"{architecture}; look whether the package index has one"
                )
        shutil.copyfile(lock, fresh / "agent.lock")
        # So that one run of pip installs both, and the project's own wheel by its hash as well.
        (fresh / "tariq.lock").write_text(
            f"tariq=={version} --hash=sha256:{digest(wheel)}\n", encoding="utf-8"
        )
        digests = {path.name: digest(path) for path in sorted(fresh.iterdir())}
        total = hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()
        bundle = Path(name) / (final.name + ".tar")
        pack(fresh, bundle)
        manifest = {
            **wanted,
            "wheel": wheel.name,
            "version": version,
            "sha256": total,
            "files": digests,
            "bundle_sha256": digest(bundle),
        }
        (fresh / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        # The directory's manifest vouches for both, so it comes last.
        shutil.rmtree(final, ignore_errors=True)
        bundle.replace(final.with_name(bundle.name))
        fresh.replace(final)
    return manifest


@contextlib.contextmanager
def alone(path: Path, seconds: float) -> Iterator[None]:
    """Hold a lock file: Ansible runs this for many hosts at once."""
    with path.open("w", encoding="utf-8") as file:
        deadline = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise WheelhouseError(
                        f"{path} is held by another run for more than {seconds:.0f} seconds; "
                        "wait for it to end, or end it, and run this again"
                    ) from error
                time.sleep(0.1)
        yield


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--python",
        default=f"{sys.version_info[0]}.{sys.version_info[1]}",
        metavar="X.Y",
        help="the hosts' Python (default: the one that runs this)",
    )
    parser.add_argument(
        "--arch",
        default=os.uname().machine,
        choices=ARCHITECTURES,
        help="the hosts' architecture, as `uname -m` says it (default: this machine's)",
    )
    parser.add_argument(
        "--checkout",
        type=Path,
        default=CHECKOUT,
        help="the checkout to build from",
    )
    parser.add_argument(
        "--wheel",
        type=Path,
        metavar="FILE",
        help="a wheel of tariq, instead of one built from the checkout",
    )
    parser.add_argument(
        "--wheels",
        default="",
        metavar="DIRECTORY|URL",
        help="where the pinned wheels come from (default: as pip is set up)",
    )
    parser.add_argument(
        "--into",
        type=Path,
        metavar="DIRECTORY",
        help="where wheelhouses are kept (default: .wheelhouse in the checkout; "
        "~/.cache/tariq/wheelhouse for an installed collection)",
    )
    parser.add_argument(
        "--wait",
        type=float,
        default=900,
        metavar="SECONDS",
        help="how long to wait for another run (default: 900)",
    )
    options = parser.parse_args(arguments)
    match = re.fullmatch(r"3\.(\d{1,2})", options.python)
    if not match or int(match[1]) < 11:
        parser.error(
            f"--python {options.python}: tariq needs python 3.11 or later, written like 3.11"
        )
    return options


def usual_place(checkout: Path) -> Path:
    """Return where wheelhouses are kept: in a checkout, but beside an installed collection.

    A collection may belong to somebody else, and is replaced as a whole by the next release.
    """
    if not (checkout / "MANIFEST.json").exists():
        return checkout / ".wheelhouse"
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "tariq" / "wheelhouse"


def wheelhouse(options: argparse.Namespace) -> dict[str, Any]:
    """Do what the command line asks for; return what is printed."""
    checkout: Path = options.checkout.resolve()
    top: Path = (options.into or usual_place(checkout)).resolve()
    given: Path | None = options.wheel
    if given and not (given.is_file() and re.match(r"tariq-[^-]+-.*\.whl$", given.name)):
        raise WheelhouseError(f"{given} is no wheel of tariq; name a file tariq-VERSION-….whl")
    # each version has a place of its own, so that going back and forth makes nothing anew
    version = f"-{distribution(given)[1]}" if given else ""
    final = top / f"cp{options.python.replace('.', '')}-{options.arch}{version}"
    top.mkdir(parents=True, exist_ok=True)
    with alone(top / f".{final.name}.lock", options.wait):
        files = [] if given else sources(checkout)
        lock = checkout / "requirements" / "agent.lock"
        pinned(lock)
        wanted = {
            "layout": LAYOUT,
            "sources_sha256": digest(given) if given else sources_digest(checkout, files),
            "lock_sha256": digest(lock),
        }
        manifest = complete(final, wanted)
        changed = manifest is None
        if manifest is None:
            manifest = make(
                checkout,
                files,
                python=options.python,
                architecture=options.arch,
                wanted=wanted,
                final=final,
                given=given,
                source=options.wheels,
            )
    return {
        "changed": changed,
        "path": str(final),
        "bundle": str(final.with_name(final.name + ".tar")),
        "wheel": manifest["wheel"],
        "version": manifest["version"],
        "sha256": manifest["sha256"],
    }


def main(arguments: list[str] | None = None) -> int:
    """Run the tool."""
    options = parse(arguments)
    try:
        result = wheelhouse(options)
    except WheelhouseError as error:
        print(f"wheelhouse: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"wheelhouse: {error.filename or 'a file'}: {error.strerror}", file=sys.stderr)
        return 1
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
