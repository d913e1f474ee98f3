"""The checks of a knock cost what the threat model says: each far less than what it shields."""

import importlib.util
from pathlib import Path

BENCH = Path(__file__).parents[2] / "bench" / "checks.py"


def test_the_cheap_shield_the_dear(monkeypatch):
    spec = importlib.util.spec_from_file_location("checks", BENCH)
    checks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(checks)
    monkeypatch.setattr(checks, "ROUNDS", 5)
    cost = checks.measure()
    assert set(cost) == set(checks.ORDER)
    for cheap, dear in (
        ("kernel: our picture without the mark", "tag"),
        ("parse", "tag"),
        ("memory", "layout"),
        ("bucket", "layout"),
        ("tag", "stegano"),
        ("layout", "stegano"),
        ("pillow", "stegano"),
        ("stegano", "gnupg"),
    ):
        assert cost[cheap] * 2 < cost[dear], (cheap, dear, cost)
