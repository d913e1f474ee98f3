"""What every suite shares."""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


HERE = Path(__file__).parent
MARKED = ("wire", "fleet")
"""Folders whose tests need root; each is a marker as well."""


def pytest_collection_modifyitems(items):
    """Mark by folder; without root those tests are skipped, and say so."""
    skip = pytest.mark.skip(reason="needs root (make test asks for it)")
    for item in items:
        folder = item.path.relative_to(HERE).parts[0]
        if folder in MARKED:
            item.add_marker(folder)
            if os.geteuid() != 0:
                item.add_marker(skip)
