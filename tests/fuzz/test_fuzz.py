"""A short run of each fuzzer; ``make fuzz`` has the long ones."""

import importlib.util

import pytest
from fuzz import campaign


@pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None,
    reason="cannot here: atheris has no wheel for this machine's Python",
)
@pytest.mark.parametrize("target", campaign.TARGETS)
def test_a_short_run_finds_nothing(target, tmp_path):
    runs, found = campaign.run(target, 3, tmp_path / target)
    assert found == ""
    assert runs > 20
