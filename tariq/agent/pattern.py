"""Whole-text matching of a policy's patterns, in time that grows with the text and no faster.

Python's ``re`` backtracks: ``(a+)+b`` takes hours over thirty letters, and there is no time
limit to give it. RE2 doesn't; what it would have to backtrack for (back references,
look-around) it refuses, which happens when the policy is read.
"""

from __future__ import annotations

from typing import Any

MAX_PATTERN = 128
_MAX_MEMORY = 1 << 20
"""Bytes that one compiled pattern may take: counted repeats in repeats end there."""


class Pattern:
    """One pattern, in RE2's syntax; it must match the whole of a text.

    Raises ValueError, with the reason, for a pattern that can't be used.
    """

    def __init__(self, source: str) -> None:
        if len(source) > MAX_PATTERN:
            raise ValueError(f"longer than {MAX_PATTERN} characters")
        self.source = source
        self._compiled = _compile(source)

    def matches(self, text: str) -> bool:
        """Tell whether the pattern matches the whole text."""
        return self._compiled.fullmatch(text) is not None


def _compile(source: str) -> Any:  # noqa: ANN401 - re2 is untyped
    try:
        import re2
    except ImportError as why:
        raise ValueError("patterns need google-re2: pip install 'tariq[agent]'") from why
    options = re2.Options()
    options.log_errors = False
    options.max_mem = _MAX_MEMORY
    try:
        return re2.compile(source, options)
    except re2.error as why:
        reason = why.args[0].decode(errors="replace") if why.args else "malformed"
        raise ValueError(f"no regular expression: {reason}") from None
