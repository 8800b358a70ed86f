"""Whether one more piece of work fits before a deadline, and what may stop in order that it does.

Work under a limit is refined step by step (`petclick.schedule`), and a valid result exists after every step.
So no plan has to be kept or mended when the machine slows down: before each piece the clock is asked whether
that piece and the reserve, what comes after all pieces, still fit. Both are expected to take as long as they
would at the present pace.

Times are those of `time.monotonic`, which no one sets and which never goes back.
"""

import os
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

WINDOW = 8
"""Pieces whose mean is the present pace, and whose slowest is what the next one may take."""
MOST_SLOWDOWN = 4.0
"""The reserve grows with the pace up to this factor: a single hiccup must not end a run."""
OLDEST_S = 3600.0
"""A process that looks older has not been waiting for us: the system's clocks are not what they seem."""

Now = Callable[[], float]


class Clock:
    """Asked before each piece of work whether it fits; measures the pieces by the times of asking.

    deadline_s: by `now`; reserve_s: what comes after the last piece takes, at the pace of the first ones.
    """

    def __init__(self, deadline_s: float, reserve_s: float, now: Now = time.monotonic) -> None:
        self._deadline_s, self._reserve_s, self._now = deadline_s, reserve_s, now
        self._asked_s: float | None = None
        self._pieces_s: deque[float] = deque(maxlen=WINDOW)
        self._best_s = float("inf")  # the best pace so far

    def reserve(self, seconds: float) -> None:
        """Keep more time for what comes after the last piece."""
        self._reserve_s += seconds

    def fits(self) -> bool:
        """Whether the next piece fits. Once it does not, none does."""
        now_s = self._now()
        if self._asked_s is not None:
            self._pieces_s.append(now_s - self._asked_s)
        self._asked_s = now_s
        next_s, slowdown = max(self._pieces_s, default=0.0), 1.0
        if len(self._pieces_s) == WINDOW:  # fewer tell no pace
            self._best_s = min(self._best_s, self._pace_s)
            slowdown = min(self._pace_s / self._best_s, MOST_SLOWDOWN) if self._best_s > 0 else 1.0
        if now_s + next_s + slowdown * self._reserve_s > self._deadline_s:
            self._deadline_s = float("-inf")
            return False
        return True

    @property
    def _pace_s(self) -> float:
        return sum(self._pieces_s) / len(self._pieces_s)


def process_start_s() -> float:
    """When this process was started, by `time.monotonic`; now, where the system does not tell."""
    now_s = time.monotonic()
    try:
        # The name in brackets may hold anything, blanks and brackets included; starttime is field 22.
        ticks = int(Path("/proc/self/stat").read_text("utf-8", "replace").rpartition(")")[2].split()[19])
        age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return now_s
    return now_s - age_s if 0 <= age_s <= OLDEST_S else now_s
