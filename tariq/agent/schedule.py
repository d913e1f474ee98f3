"""Days and hours, and last days: when a grant holds.

``mon-fri 07:00-19:00`` · ``sat,sun 10:00-12:00`` · ``daily 00:00-24:00``. A span whose end
isn't after its beginning goes on into the next day, and belongs to the day on which it begins.
"""

from __future__ import annotations

import datetime as dt
import re
import zoneinfo
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tariq import strict

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_SPAN = re.compile(
    r"(?P<days>[a-z,-]+) (?P<h1>\d\d):(?P<m1>[0-5]\d)-(?P<h2>\d\d):(?P<m2>[0-5]\d)", re.ASCII
)
_DAY = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
_MIDNIGHT = 24 * 60


@dataclass(frozen=True, slots=True)
class Span:
    """Some days of the week (0 is Monday), from one minute of the day to before another."""

    text: str
    days: frozenset[int]
    start: int
    end: int

    def holds(self, when: dt.datetime) -> bool:
        """Tell whether a local time is inside."""
        minute = when.hour * 60 + when.minute
        if self.start < self.end:
            return when.weekday() in self.days and self.start <= minute < self.end
        if minute >= self.start:
            return when.weekday() in self.days
        return minute < self.end and (when.weekday() - 1) % 7 in self.days


def span(value: Any) -> Span:  # noqa: ANN401
    """Check one span of days and hours."""
    match = _SPAN.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise strict.Wrong("not days and hours such as 'mon-fri 07:00-19:00'")
    start = int(match["h1"]) * 60 + int(match["m1"])
    end = int(match["h2"]) * 60 + int(match["m2"])
    if start >= _MIDNIGHT or end > _MIDNIGHT:
        raise strict.Wrong("hours go from 00:00 to 24:00")
    return Span(value, frozenset(_days(match["days"])), start, end)


def _days(text: str) -> list[int]:
    if text == "daily":
        return list(range(7))
    found = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        if first not in DAYS or (last or first) not in DAYS:
            raise strict.Wrong(f"{part!r} is no day: {', '.join(DAYS)}, a range, or daily")
        begin, end = DAYS.index(first), DAYS.index(last or first)
        found += [(begin + step) % 7 for step in range((end - begin) % 7 + 1)]
    return found


def last_day(value: Any) -> dt.date:  # noqa: ANN401
    """Check a date; YAML reads an unquoted one by itself."""
    if type(value) is dt.date:
        return value
    try:
        if _DAY.fullmatch(value):
            return dt.date.fromisoformat(value)
    except (TypeError, ValueError):
        pass
    raise strict.Wrong("not a day such as 2027-03-31")


def timezone(value: Any) -> zoneinfo.ZoneInfo:  # noqa: ANN401
    """Check the name of a time zone."""
    try:
        return zoneinfo.ZoneInfo(value)
    except (TypeError, ValueError, OSError, zoneinfo.ZoneInfoNotFoundError):
        reason = "not a time zone of this machine, such as Europe/Berlin (package tzdata)"
        raise strict.Wrong(reason) from None


def holds(spans: Sequence[Span], when: dt.datetime) -> bool:
    """Tell whether a local time is in one of them; no spans: always."""
    return not spans or any(each.holds(when) for each in spans)


def moment(text: str, zone: dt.tzinfo, now: dt.datetime) -> dt.datetime:
    """Read ``sat 03:00``, ``03:00`` or ``2027-01-02 03:00`` as the next such local time.

    Raises ValueError.
    """
    day, _, clock = text.strip().lower().rpartition(" ")
    hour, minute = (int(part) for part in clock.split(":"))
    time = dt.time(hour, minute)
    if day and day not in DAYS:
        return dt.datetime.combine(dt.date.fromisoformat(day), time, zone)
    local = now.astimezone(zone)
    ahead = (DAYS.index(day) - local.weekday()) % 7 if day else 0
    if not ahead and time < local.time().replace(second=0, microsecond=0):
        ahead = 7 if day else 1
    return dt.datetime.combine(local.date() + dt.timedelta(days=ahead), time, zone)
