"""What every suite shares."""

import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))


HERE = Path(__file__).parent
MARKED = ("wire", "fleet")
"""Folders whose tests need root; each is a marker as well."""

LIFE = ("test_lifecycle.py", "test_fleet_collection.py")

# The same examples in each run, so that a change that passed once passes again.
settings.register_profile("everyday", derandomize=True, deadline=None, max_examples=60)
settings.load_profile("everyday")


def pytest_collection_modifyitems(items):
    """Mark by folder; without root those tests are skipped, and say so."""
    skip = pytest.mark.skip(reason="needs root (make test asks for it)")
    for item in items:
        folder = item.path.relative_to(HERE).parts[0]
        if folder in MARKED:
            item.add_marker(folder)
            if os.geteuid() != 0:
                item.add_marker(skip)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Keep a file's tests in one process, for they share a network; the fleet's, its hosts.

    There are two fleets, because the tests of one took as long as all others together. Each has
    tests that need it as those before have left it.
    """
    from xdist.scheduler import LoadFileScheduling

    class Together(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = super()._split_scope(nodeid)
            if not file.startswith("tests/fleet/"):
                return file
            return "a fleet's life" if file.endswith(LIFE) else "a fleet"

    return Together(config, log)
