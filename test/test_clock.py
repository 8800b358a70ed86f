"""The clock, on a simulated machine: no deadline is missed, and no time is left lying about."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from petclick.clock import MOST_SLOWDOWN, WINDOW, Clock, process_start_s


class Machine:
    """Time that passes as work is done, at a speed that may change; the wall's clock is no part of it."""

    def __init__(self, start_s: float, slowdown: Callable[[float], float]) -> None:
        self.now_s, self._slowdown = start_s, slowdown

    def now(self) -> float:
        return self.now_s

    def work(self, seconds: float) -> None:
        self.now_s += seconds * self._slowdown(self.now_s)


def run(machine: Machine, deadline_s: float, piece_s: float, reserve_s: float, most: int = 10_000) -> int:
    """Do pieces as long as they fit, then what comes after; returns how many."""
    ticking = Clock(deadline_s, reserve_s, machine.now)
    done = 0
    while done < most and ticking.fits():
        machine.work(piece_s)
        done += 1
    machine.work(reserve_s)
    return done


@given(
    start_s=st.floats(0, 1e6),
    limit_s=st.floats(20, 1000),
    piece_s=st.floats(0.05, 2),
    reserve_s=st.floats(0, 10),
)
def test_at_a_steady_pace_the_time_is_used_up(
    start_s: float, limit_s: float, piece_s: float, reserve_s: float
) -> None:
    machine = Machine(start_s, lambda _: 1)
    done = run(machine, start_s + limit_s, piece_s, reserve_s, most=100_000)
    assert start_s + limit_s - 1.01 * piece_s - 1e-6 <= machine.now_s <= start_s + limit_s + 1e-6
    assert done == pytest.approx((limit_s - reserve_s) / piece_s, abs=1.5)


@pytest.mark.parametrize("factor", [1.5, 2, 3, MOST_SLOWDOWN])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_a_machine_that_slows_down_is_in_time(factor: float, share: float) -> None:
    limit_s = 60.0
    machine = Machine(0, lambda now_s: factor if now_s > share * limit_s else 1)
    assert run(machine, limit_s, 0.1, reserve_s=2) > 100
    assert machine.now_s <= limit_s
    assert machine.now_s > limit_s - 5, "and uses its time all the same"


def test_one_that_gets_faster_uses_it() -> None:
    machine = Machine(0, lambda now_s: 4 if now_s < 20 else 1)
    done = run(machine, 60, 0.1, reserve_s=2)
    assert machine.now_s <= 60
    assert done > 20 / 0.4 + 35 / 0.1


def test_a_hiccup_does_not_end_a_run() -> None:
    machine = Machine(0, lambda now_s: 30 if 10 < now_s < 10.11 else 1)
    assert run(machine, 60, 0.1, reserve_s=5) > 480
    assert machine.now_s <= 60


@pytest.mark.parametrize("deadline_s", [-5.0, 0.0, 1.9])
def test_without_time_nothing_is_begun(deadline_s: float) -> None:
    assert run(Machine(0, lambda _: 1), deadline_s, 0.1, reserve_s=2) == 0


def test_once_it_does_not_fit_nothing_does() -> None:
    times = iter([0.0, 1.0, 99.0, 1.0])
    ticking = Clock(10, 0, lambda: next(times))
    assert [ticking.fits() for _ in range(4)] == [True, True, False, False]


def test_more_time_is_never_less_work() -> None:
    done = [run(Machine(0, lambda _: 1), limit_s, 0.3, reserve_s=2) for limit_s in np.arange(0, 50, 0.7)]
    assert done == sorted(done)
    assert done[0] == 0


def test_what_is_small_all_fits() -> None:
    machine = Machine(0, lambda _: 1)
    assert run(machine, 60, 0.1, reserve_s=2, most=40) == 40
    assert machine.now_s == pytest.approx(6)


def test_without_a_deadline_all_fits() -> None:
    assert Clock(float("inf"), 0).fits()


def test_a_clock_too_coarse_for_the_work_does_not_divide_by_zero() -> None:
    ticking = Clock(60, 2, lambda: 1.0)
    assert all(ticking.fits() for _ in range(2 * WINDOW))


def test_a_process_knows_when_it_was_started() -> None:
    code = (
        "import time; time.sleep(0.5); from petclick.clock import process_start_s; print(process_start_s())"
    )
    before = time.monotonic()
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    tick = 1 / os.sysconf("SC_CLK_TCK")
    assert before - tick <= float(result.stdout) <= time.monotonic() - 0.5 + tick


@pytest.mark.parametrize("content", ["", "1 (a) b) S", "1 (x) S" + " 9999999999" * 20, "x"])
def test_where_the_system_does_not_tell_it_starts_now(monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    monkeypatch.setattr(Path, "read_text", lambda *_: content)
    before = time.monotonic()
    assert before <= process_start_s() <= time.monotonic()
