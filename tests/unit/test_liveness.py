"""Links that fall silent: what counts as gone, and what does not."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shoal.core.liveness import LOOKS, FairClock, Pulse, Verdict

T = 30.0
PERIOD = T / LOOKS


def looks(pulse: Pulse, clock: FairClock, start: float, seconds: float, heard: bool = False) -> list[Verdict]:
    """What a judge says that looks regularly."""
    found, now = [], start
    while now < start + seconds:
        now += PERIOD
        found.append(pulse.look(clock.look(now), heard, False))
    return found


def test_a_link_is_silent_after_the_timeout_and_not_before() -> None:
    clock = FairClock(PERIOD)
    pulse = Pulse(T, clock.look(100.0))
    assert Verdict.SILENT not in looks(pulse, clock, 100.0, T - PERIOD)
    assert looks(pulse, clock, 100.0 + T - PERIOD, PERIOD)[-1] is Verdict.SILENT


def test_a_byte_is_life_however_few_they_are() -> None:
    clock = FairClock(PERIOD)
    pulse = Pulse(T, clock.look(0.0))
    assert Verdict.SILENT not in looks(pulse, clock, 0.0, 100 * T, heard=True)


def test_an_end_that_says_nothing_beats_several_times_within_the_timeout_of_the_other() -> None:
    clock = FairClock(PERIOD)
    pulse = Pulse(T, clock.look(0.0))
    assert looks(pulse, clock, 0.0, 10 * T, heard=True).count(Verdict.BEAT) >= 50


def test_a_judge_that_stood_still_extends_what_it_gave() -> None:
    clock = FairClock(PERIOD)
    pulse = Pulse(T, clock.look(0.0))
    looks(pulse, clock, 0.0, T / 2)
    assert pulse.look(clock.look(10_000.0), False, False) is not Verdict.SILENT
    assert looks(pulse, clock, 10_000.0, T / 4)[-1] is not Verdict.SILENT
    assert looks(pulse, clock, 10_000.0 + T / 4, T / 2)[-1] is Verdict.SILENT


def test_a_process_that_is_silent_is_not_gone_while_its_machine_answers() -> None:
    clock = FairClock(PERIOD)
    pulse = Pulse(T, clock.look(0.0))
    looks(pulse, clock, 0.0, 10 * T)
    assert not pulse.judge(clock.time, machine=1.0)
    assert pulse.judge(clock.time, machine=T)
    assert pulse.judge(clock.time, machine=None)


def test_a_process_that_speaks_is_not_gone_whatever_the_kernel_says() -> None:
    clock = FairClock(PERIOD)
    pulse = Pulse(T, clock.look(0.0))
    pulse.look(clock.look(1.0), True, False)
    assert not pulse.judge(clock.time, machine=100 * T)


@given(st.lists(st.floats(0, 1e6), min_size=1))
def test_fair_time_never_goes_faster_than_time_and_never_backwards(steps: list[float]) -> None:
    clock = FairClock(1.0)
    now = before = clock.look(0.0)
    for step in steps:
        now += step
        fair = clock.look(now)
        assert before <= fair <= before + min(step, 2.0) + 1e-6
        before = fair
    assert abs(clock.time + clock.stood - now) <= 1e-6 * max(1.0, now)
