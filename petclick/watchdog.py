"""The last resort of a limited run: something else is done when the time is up, whatever the work is at."""

import threading
import time
from collections.abc import Callable


class Watchdog:
    """Calls `act` from a thread of its own at `at_s` (by `time.monotonic`), unless `claim` comes first."""

    def __init__(self, at_s: float, act: Callable[[], object]) -> None:
        """Start waiting; an infinite `at_s` never comes."""
        self._act, self._turn = act, threading.Lock()
        self._stop = threading.Event()
        if at_s < float("inf"):
            threading.Thread(target=self._wait, args=(at_s,), daemon=True).start()

    def claim(self) -> bool:
        """Keep `act` from being called; False where it has been, or is being, called already."""
        self._stop.set()
        return self._turn.acquire(blocking=False)

    def _wait(self, at_s: float) -> None:
        in_time = self._stop.wait(min(max(at_s - time.monotonic(), 0), threading.TIMEOUT_MAX))
        if not in_time and self._turn.acquire(blocking=False):
            self._act()
