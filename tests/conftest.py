"""What every suite shares."""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


def pytest_collection_modifyitems(items):
    """Real packets need root; without it those tests are skipped, and say so."""
    if os.geteuid() == 0:
        return
    skip = pytest.mark.skip(reason="needs root (make test asks for it)")
    for item in items:
        if item.get_closest_marker("wire") or item.get_closest_marker("fleet"):
            item.add_marker(skip)
