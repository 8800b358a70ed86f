"""The watchdog acts at its time, unless the result comes first; never both."""

import threading
import time

from petclick.watchdog import Watchdog


def test_it_acts_when_the_time_is_up() -> None:
    acted = threading.Event()
    start = time.monotonic()
    watchdog = Watchdog(start + 0.2, acted.set)
    assert acted.wait(10)
    assert time.monotonic() - start >= 0.2
    assert not watchdog.claim(), "too late for the result"


def test_a_time_that_has_passed_is_now() -> None:
    acted = threading.Event()
    Watchdog(time.monotonic() - 5, acted.set)
    assert acted.wait(10)


def test_a_result_in_time_keeps_it_quiet() -> None:
    acted = threading.Event()
    watchdog = Watchdog(time.monotonic() + 0.2, acted.set)
    assert watchdog.claim()
    assert not acted.wait(0.4)


def test_without_a_time_it_never_acts() -> None:
    n_threads = threading.active_count()
    watchdog = Watchdog(float("inf"), lambda: None)
    assert threading.active_count() == n_threads
    assert watchdog.claim()


def test_of_many_at_the_same_moment_one_wins() -> None:
    for _ in range(50):
        acted = threading.Event()
        watchdog = Watchdog(time.monotonic() + 0.001, acted.set)
        time.sleep(0.001)
        if watchdog.claim():
            assert not acted.is_set()
        else:
            assert acted.wait(10)
