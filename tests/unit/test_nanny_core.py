"""The nanny's core, without a process."""

from __future__ import annotations

from typing import Any

from shoal.core.effects import Effect, Log, Send, Signal, Spawn, Stop
from shoal.core.events import ChildExited, ChildFailed, ChildReady, Command, Due, LinkLost, MemorySample, Received
from shoal.core.nanny.child import ChildState
from shoal.core.nanny.reactor import GRACE, NannyCore
from shoal.messages import Close, Leave, Leaving, RestartWorker, WorkerDied, WorkerGaveUp


def acts(effects: list[Effect]) -> list[Effect]:
    return [effect for effect in effects if not isinstance(effect, Log)]


def up(core: NannyCore, now: float = 0.0) -> None:
    core.handle([Command("start")], now)
    core.handle([ChildReady(core.incarnation, "w1", "tcp://w1", 7)], now)
    assert core.state is ChildState.UP


def exited(core: NannyCore, code: int | None = 0, number: int | None = None, running: Any = ()) -> ChildExited:
    return ChildExited(core.incarnation, code, number, list(running))


def test_a_worker_that_dies_is_reported_and_started_again_at_once() -> None:
    """With its reason, and what it was running."""
    core = NannyCore("n")
    up(core)
    event = ChildExited(1, None, 11, ["k"], 5_000_000, ["Fatal Python error: Segmentation fault"])
    report, spawn = acts(core.handle([event], 5.0))
    assert isinstance(report, Send)
    died = report.message
    assert isinstance(died, WorkerDied)
    assert (died.worker, died.running, died.expected, died.restarting) == ("w1", ["k"], False, True)
    assert (died.cause, died.address, died.peak) == ("signal", "tcp://w1", 5_000_000)
    assert "signal 11 (SIGSEGV)" in died.reason
    assert "5 MB" in died.reason
    assert died.output == event.output
    assert spawn == Spawn(2)
    assert (core.restarts, core.deaths) == (1, {"signal": 1})


def test_starts_that_fail_are_further_and_further_apart_and_end() -> None:
    """With the reason that the process gave."""
    core = NannyCore("n", crash_limit=3)
    core.handle([Command("start")], 0.0)
    pauses, now = [], 0.0
    while True:
        effects = acts(core.handle([ChildFailed(core.incarnation, "no such module"), exited(core, 1)], now))
        if core.state is ChildState.GIVEN_UP:
            break
        due = core.deadline()
        assert due is not None
        pauses.append(round(due - now, 3))
        now = due
        assert acts(core.handle([Due()], now)) == [Spawn(core.incarnation)]
    assert pauses == [0.2, 0.4]
    assert [type(effect) for effect in effects] == [Send, Send, Stop]
    (told,) = [e.message for e in effects if isinstance(e, Send) and isinstance(e.message, WorkerGaveUp)]
    assert "no such module" in told.reason


def test_a_worker_over_its_limit_is_killed_with_the_figures() -> None:
    """And a sample of an earlier incarnation kills nobody."""
    core = NannyCore("n", memory_limit=1000_000_000, terminate=0.95)
    up(core)
    assert core.handle([MemorySample(1, 900_000_000), MemorySample(0, 2_000_000_000)], 1.0) == []
    assert core.handle([MemorySample(1, 960_000_000)], 2.0) == [Signal(1, True)]
    (report, *_) = acts(core.handle([exited(core, None, 9, ["bomb"])], 2.1))
    assert isinstance(report, Send)
    assert "960 MB" in report.message.reason
    assert "limit of 1000 MB" in report.message.reason


def test_close_asks_first_and_kills_after_a_while() -> None:
    """Then it is over, and nothing is started again."""
    core = NannyCore("n")
    up(core)
    assert core.handle([Received("", [Close("enough")])], 0.0) == [Signal(1, False)]
    assert core.deadline() == GRACE
    assert acts(core.handle([Due()], GRACE)) == [Signal(1, True)]
    effects = core.handle([exited(core, None, 9)], 3.0)
    assert effects[-1] == Stop("enough")
    assert core.state is ChildState.DOWN
    assert core.handle([Command("start")], 4.0) == []


def test_a_restart_that_is_asked_for_is_soft_at_first() -> None:
    """One for a worker that is not heard of is hard at once."""
    core = NannyCore("n")
    up(core)
    assert core.handle([Received("", [RestartWorker(1, "asked for", 30.0)])], 0.0) == [Signal(1, False)]
    assert acts(core.handle([Due()], GRACE)) == [Signal(1, True)]
    effects = acts(core.handle([exited(core, None, 9)], 2.1))
    assert effects[-1] == Spawn(2)
    core.handle([ChildReady(2, "w2", "tcp://w2", 8)], 3.0)
    assert core.handle([Received("", [RestartWorker(1, "silent", 30.0, True, "w1")])], 4.0) == []
    assert core.handle([Received("", [RestartWorker(1, "silent", 30.0, True, "w2")])], 4.0) == [Signal(2, True)]
    (report, *_) = acts(core.handle([exited(core, None, 9, ["k"])], 4.1))
    assert isinstance(report, Send)
    assert (report.message.cause, report.message.expected) == ("silent", False)


def test_a_kill_is_followed_by_nothing_until_a_start() -> None:
    """The process has 0.8 of the time to end by itself."""
    core = NannyCore("n")
    up(core)
    assert core.handle([Command("kill", "", 10.0)], 0.0) == [Signal(1, False)]
    assert core.deadline() == 8.0
    core.handle([Command("kill", "", 1.0)], 0.0)
    assert core.deadline() == 0.8
    (report,) = acts(core.handle([exited(core, 0)], 1.0))
    assert isinstance(report, Send)
    assert (report.message.cause, report.message.restarting) == ("asked", False)
    assert core.state is ChildState.DOWN
    assert core.handle([Command("start")], 2.0) == [Spawn(2)]


def test_the_last_wish_counts() -> None:
    """Whatever was asked for while the process was ending."""
    for wishes, last in ((["kill", "restart"], Spawn), (["restart", "kill"], Send), (["restart", "close"], Stop)):
        core = NannyCore("n")
        up(core)
        core.handle([Command(wish) for wish in wishes], 0.0)
        assert type(acts(core.handle([exited(core, 0)], 1.0))[-1]) is last
    core.handle([Command("start"), Command("restart"), Command("kill")], 2.0)
    assert core.state is ChildState.DOWN


def test_one_that_leaves_or_does_not_reconnect_ends_with_its_worker() -> None:
    """But for a restart that was asked for, where it does not reconnect."""
    leaving, once = NannyCore("n"), NannyCore("n", reconnect=False)
    for core in (leaving, once):
        up(core)
    assert leaving.handle([Command("leave", "enough")], 0.0) == []
    assert isinstance(acts(leaving.handle([exited(leaving, 0)], 1.0))[-1], Stop)
    once.handle([Command("restart")], 1.0)
    assert acts(once.handle([exited(once, 0)], 1.1))[-1] == Spawn(2)
    once.handle([ChildReady(2, "w2", "tcp://w2", 8)], 2.0)
    assert isinstance(acts(once.handle([exited(once, 3)], 3.0))[-1], Stop)


def test_memory_is_looked_at_the_oftener_the_less_is_left() -> None:
    """Never less than it takes to use up the rest."""
    core = NannyCore("n", memory_limit=1_000_000_000, terminate=0.95)
    assert core.sample_interval(100_000_000, 0.1) == 0.1
    assert core.sample_interval(900_000_000, 0.1) == 0.0125
    assert core.sample_interval(2_000_000_000, 0.1) == 0.01
    assert NannyCore("n").sample_interval(10**12, 0.1) == 0.1


def test_a_start_that_takes_too_long_is_ended() -> None:
    """And tried again after a pause."""
    core = NannyCore("n", start_timeout=10.0)
    core.handle([Command("start")], 0.0)
    assert core.deadline() == 10.0
    assert core.handle([Due()], 10.0) == [Signal(1, True)]
    core.handle([exited(core, None, 9)], 10.1)
    assert core.state is ChildState.BACKOFF


def test_events_of_an_earlier_incarnation_change_nothing() -> None:
    """Late exits and late readiness."""
    core = NannyCore("n")
    up(core)
    core.handle([exited(core, 1)], 1.0)
    assert core.incarnation == 2
    assert core.handle([ChildExited(1, 0, None, []), ChildReady(1, "w1", "tcp://w1", 7)], 2.0) == []
    assert core.state is ChildState.STARTING


def test_a_lost_scheduler_ends_the_worker() -> None:
    """The nanny closes; its worker does not live on by itself."""
    core = NannyCore("n")
    up(core)
    assert core.handle([LinkLost("scheduler", "s", "gone")], 0.0) == [Signal(1, False)]


def test_the_scheduler_changes_its_mind_about_leaving_and_the_owner_does_not() -> None:
    """A nanny that was told to leave by the scheduler restarts again once that is taken back; by its owner, never."""
    core = NannyCore("n")
    up(core)
    assert core.handle([Received("", [Leave(1, True)])], 1.0) == [Send("", Leaving(1))]
    assert not core.wish_is_up
    core.handle([Received("", [Leave(2, False)])], 2.0)
    assert core.wish_is_up
    core.handle([Command("leave")], 3.0)
    core.handle([Received("", [Leave(3, True)]), Received("", [Leave(4, False)])], 4.0)
    assert not core.wish_is_up
    assert isinstance(acts(core.handle([exited(core)], 5.0))[-1], Stop)
