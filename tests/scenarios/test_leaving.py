"""Event orders of retirement that broke other systems (R and B items of the list), told by hand."""

from __future__ import annotations

from shoal.messages import AskRetirement, Close, Heartbeat, Leave, Leaving, RestartWorker, Retired, Unknown, WorkerDied
from shoal.sim.script import Script


def leave_number(s: Script, nanny: str) -> int:
    """The number of the last order to leave that a nanny heard."""
    return next(m.number for m in reversed(s.heard[nanny]) if isinstance(m, Leave) and m.on)


def test_r1_the_race() -> None:
    """A worker that was retired, and is not ended yet, comes back in no form, and gets no data."""
    s = Script("B")
    s.nanny("N")
    s.join("A", slot="N")
    s.flow()
    s.scatters("A", "x")
    s.computes("A", "y")
    s.retire("A", close=False)
    s.flow()
    assert not s.fetches("B"), "data is moved before the nanny has said that it will not restart"
    s.says("N", Leaving(leave_number(s, "N")))
    s.flow()
    while s.fetches("B"):
        s.arrives("B", "A")
        s.flow()
    assert [*s.answer()["retired"]] == ["sim://A"]
    assert s.on("x") == s.on("y") == ["B"]
    assert any(isinstance(m, Retired) and not m.close for m in s.heard["A"])
    assert not s.workers["A"].values, "it holds on to data"
    s.says("A", Heartbeat({}))
    s.flow()
    assert isinstance(s.heard["A"][-1], Retired)
    # Its process ends, and its nanny's machine, about to end, starts another all the same.
    s.dies("A")
    s.says("N", WorkerDied("A", "it closed", [], restarting=True))
    s.join("A2", slot="N")
    s.flow()
    assert "A2" not in s.workers, "a slot that was left has a worker again"
    s.finish()
    assert s.future("x") == s.future("y") == "finished"
    assert s.began["y"] == 1


def test_a_new_nanny_at_the_same_address_is_a_new_slot() -> None:
    s = Script("A", "B")
    s.retire("A")
    s.flow()
    s.join("A2", address="sim://A")
    s.flow()
    assert "A2" in s.workers


def test_a_nanny_that_has_left_may_not_register_again() -> None:
    s = Script("B")
    s.nanny("N")
    s.retire("N")
    s.flow()
    s.nanny("N")
    assert isinstance(s.heard["N"][-1], Close)


def test_an_unknown_worker_registers_again_with_what_it_holds() -> None:
    s = Script("A", "B")
    s.scatters("A", "x")
    s.flow()
    s.scheduler._remove_worker(s.scheduler.state.by_name["A"], "it was forgotten", expected=True)
    s.scheduler.left.clear()
    s.lines.clear()
    s._roles["A"] = "worker"
    s._dead.discard("A")
    s.says("A", Heartbeat({}))
    assert isinstance(s.waiting("s>A")[-1], Unknown)
    s.flow("s>A")
    (told,) = s.waiting("A>s")
    assert [item.key for item in told.items] == ["x"]


def test_r2_reduction_and_retirement_do_not_play_ping_pong() -> None:
    """The copy that retirement makes is not dropped because there are two."""
    s = Script("A", "B", amm_running=True)
    s.computes("A", "x y")
    s.submit("z < x", on="A")
    s.flow()
    s.retire("A")
    s.flow()
    s.later(2.1)
    s.flow()
    s.arrives("B", "A")
    for _ in range(3):
        s.later(2.1)
        s.flow()
    assert "B" in s.on("x")
    s.ends("A", "z")
    s.finish()
    assert s.on("x") == ["B"]
    assert [*s.answer()["retired"]] == ["sim://A"]
    assert s.began == {"x": 1, "y": 1, "z": 1}


def test_r3_all_recipients_are_paused() -> None:
    """It is waited for a while, then the worker stays, and it is said why."""
    s = Script("A", "B")
    s.computes("A", "x")
    s.pauses("B")
    s.flow()
    s.retire("A")
    s.flow()
    s.later(10.0)
    s.flow()
    assert s.scheduler.departures
    s.later(25.0)
    s.flow()
    assert "B is paused" in s.answer()["kept"]["sim://A"]
    s.submit("y", on="A")
    s.finish()


def test_r3_a_recipient_resumes_in_time() -> None:
    s = Script("A", "B")
    s.computes("A", "x")
    s.pauses("B")
    s.flow()
    s.retire("A")
    s.flow()
    s.resumes("B")
    s.finish()
    assert [*s.answer()["retired"]] == ["sim://A"]
    assert s.began == {"x": 1}


def test_r3_b6_there_is_no_other() -> None:
    s = Script("A")
    s.computes("A", "x")
    s.retire("A")
    s.flow()
    assert "'x', and there is no other worker" in s.answer()["kept"]["sim://A"]
    assert not s.workers["A"].core.leaving
    s.submit("y < x")
    s.finish()


def test_the_last_holder_may_be_forced_which_says_what_is_lost() -> None:
    s = Script("A")
    s.scatters("A", "x")
    s.flow()
    s.retire("A", force=True)
    s.flow()
    assert s.answer()["retired"]["sim://A"]["lost"] == ["x"]
    assert s.future("x") == "lost"


def test_b5_all_of_them_leave_and_one_stays_with_everything() -> None:
    """Both copies of x are on workers that leave together."""
    s = Script("A", "B", "C")
    s.computes("A", "x u")
    s.computes("B", "v")
    s.submit("y < x", on="B")
    s.flow()
    s.arrives("B", "A")
    s.ends("B", "y")
    s.flow()
    s.retire("A B C")
    s.finish()
    told = s.answer()
    assert len(told["kept"]) == 1
    assert len(told["retired"]) == 2
    assert set(s.began.values()) == {1}


def test_r4_b7_a_recipient_hangs() -> None:
    """Another one is asked once nothing came for a while."""
    s = Script("A", "B", "C", move_timeout=5.0)
    s.computes("A", "x")
    s.retire("A")
    s.flow()
    (target,) = [name for name in ("B", "C") if s.fetches(name)]
    other = "C" if target == "B" else "B"
    s.later(6.0)
    s.flow()
    assert s.fetches(other) == {"A": ["x"]}
    s.arrives(other, "A")
    s.finish()
    assert [*s.answer()["retired"]] == ["sim://A"]


def test_r4_a_recipient_dies() -> None:
    s = Script("A", "B", "C")
    s.computes("A", "x")
    s.retire("A")
    s.flow()
    (target,) = [name for name in ("B", "C") if s.fetches(name)]
    s.dies(target)
    s.finish()
    assert [*s.answer()["retired"]] == ["sim://A"]
    assert s.began == {"x": 1}


def test_r5_b9_a_running_task_is_let_finish() -> None:
    s = Script("A", "B")
    s.submit("x", on="A")
    s.flow()
    s.retire("A")
    s.flow()
    assert s.runs("A") == ["x"]
    s.later(100.0)
    s.flow()
    s.ends("A", "x")
    s.finish()
    assert [*s.answer()["retired"]] == ["sim://A"]
    assert s.on("x") == ["B"]
    assert s.began == {"x": 1}


def test_r5_a_running_task_is_reassigned_where_that_is_wanted() -> None:
    """Nobody is blamed for it."""
    s = Script("A", "B", allowed_failures=0)
    s.submit("x", on="A B")
    s.flow()
    where = s.on("x")[0]
    s.retire(where, patience=3.0)
    s.flow()
    s.later(4.0)
    s.finish()
    assert s.began == {"x": 2}
    assert s.future("x") == "finished"


def test_b1_a_task_finishes_at_the_last_moment() -> None:
    """All that there was has been moved; then there is one key more."""
    s = Script("A", "B", nthreads=2)
    s.computes("A", "x")
    s.submit("y", on="A")
    s.flow()
    s.retire("A")
    s.flow()
    s.arrives("B", "A")
    s.flow()
    assert "A" in s.workers
    s.ends("A", "y")
    s.flow()
    assert s.fetches("B") == {"A": ["y"]}
    s.finish()
    assert s.on("y") == ["B"]
    assert [*s.answer()["retired"]] == ["sim://A"]


def test_b4_the_recipient_retires_too() -> None:
    """Its copy is on its way: a third worker gets it."""
    s = Script("A", "B", "C")
    s.computes("A", "x")
    s.retire("A")
    s.flow()
    (target,) = [name for name in ("B", "C") if s.fetches(name)]
    s.retire(target)
    s.flow()
    s.finish()
    (last,) = s.workers
    assert s.on("x") == [last]
    assert s.began == {"x": 1}


def test_b4_the_copy_came_as_its_recipient_was_told_to_leave() -> None:
    """The order to drop it crosses the news that it is there: what the scheduler counts on is there."""
    s = Script("A", "B", "C")
    s.scatters("A", "x")
    s.flow()
    s.retire("A")
    s.flow()
    (target,) = [name for name in ("B", "C") if s.fetches(name)]
    other = "C" if target == "B" else "B"
    s.arrives(target, "A")  # and says so
    s.retire(target)
    s.flow("K>s")
    s.flow(f"s>{target}")
    s.finish()
    assert s.on("x") == [other]
    assert s.future("x") == "finished"


def test_a_drop_that_crosses_the_news_of_a_copy_does_not_meet_it() -> None:
    """Fetched for a task, let go of, and announced, all at once."""
    s = Script("A", "B")
    s.scatters("A", "x")
    s.flow()
    s.submit("y < x", on="B")
    s.flow()
    s.arrives("B", "A")  # AddKeys is on its way
    s.scheduler.state.free(s.scheduler.state.by_name["B"], "x")
    s.flow("K>s")
    s.submit("z", on="A")
    s.flow()
    task = s.scheduler.state.tasks["x"]
    for worker in task.who_has or ():
        assert "x" in s.workers[worker.id].values
    s.finish()


def test_r6_a_fetch_from_a_worker_that_goes() -> None:
    s = Script("A", "B", "C")
    s.computes("A", "x")
    s.submit("y < x", on="C")
    s.flow()
    assert s.fetches("C") == {"A": ["x"]}
    s.retire("A")
    s.flow()
    if s.fetches("B"):
        s.arrives("B", "A")
    s.flow()
    s.finish()
    assert s.began == {"x": 1, "y": 1}


def test_r7_b12_its_time_is_over_and_the_cluster_shrinks() -> None:
    """Both retire the same worker: once."""
    s = Script("A", "B")
    s.computes("A", "x")
    s.says("A", AskRetirement("its time is over", None, True))
    s.retire("A")
    s.finish()
    assert [*s.answer()["retired"]] == ["sim://A"]
    assert len([text for text in s.logs if "retires" in text]) == 1
    assert s.on("x") == ["B"]


def test_b12_the_two_last_workers_expire_together() -> None:
    s = Script("A", "B")
    s.scatters("A", "x")
    s.scatters("B", "y")
    s.flow()
    s.says("A", AskRetirement("its time is over"))
    s.says("B", AskRetirement("its time is over"))
    s.finish()
    assert len(s.workers) == 1
    assert s.future("x") == s.future("y") == "finished"


def test_r10_it_is_asked_for_twice() -> None:
    s = Script("A", "B", "C")
    s.computes("A", "x")
    s.retire("A B")
    s.retire("B A")
    s.finish()
    assert s.answer()["retired"].keys() == {"sim://A", "sim://B"}
    s.retire("A")
    s.flow()
    assert s.answer() == {"retired": {}, "kept": {}, "lost": {}}


def test_r12_it_has_not_registered_yet() -> None:
    """Its nanny is told to close, and what it has started may not come."""
    s = Script("B")
    s.nanny("N")
    s.retire("N")
    s.flow()
    assert isinstance(s.heard["N"][-1], Close)
    s.join("A", slot="N")
    s.flow()
    assert "A" not in s.workers


def test_b13_it_dies_on_the_way() -> None:
    s = Script("A", "B")
    s.submit("x")
    s.flow()
    (first,) = s.on("x")
    s.ends(first, "x")
    s.flow()
    s.retire(first)
    s.flow()
    s.dies(first)
    s.flow()
    assert [*s.answer()["lost"]] == [f"sim://{first}"]
    s.finish()
    assert s.began == {"x": 2}


def test_b18_a_target_of_replication_dies() -> None:
    from shoal.core.events import Said
    from shoal.messages import Replicate

    s = Script("A", "B", "C")
    s.scatters("A", "x")
    s.flow()
    s._tell("K", Said(Replicate(99, ["x"])))
    s.flow()
    s.dies("B")
    s.finish()
    assert s.answer() == {"failed": {}}
    assert sorted(s.on("x")) == ["A", "C"]


def test_b19_two_drops_leave_one() -> None:
    s = Script("A", "B")
    s.computes("A", "x")
    s.submit("y < x", on="B")
    s.finish()
    state = s.scheduler.state
    task = state.tasks["x"]
    assert state.drop_copy(task, state.by_name["A"])
    assert not state.drop_copy(task, state.by_name["B"])
    s.finish()


def test_b19_a_drop_beside_one_that_leaves() -> None:
    s = Script("A", "B")
    s.computes("A", "x")
    s.submit("y < x", on="B")
    s.finish()
    s.submit("z", on="A")
    s.flow()
    s.retire("A")
    s.flow()
    state = s.scheduler.state
    assert not state.drop_copy(state.tasks["x"], state.by_name["B"])
    s.finish()


def test_b20_a_task_comes_while_the_last_worker_retires() -> None:
    """It waits, and runs where it is once that stays."""
    s = Script("A")
    s.computes("A", "x")
    s.submit("y", on="A")
    s.flow()
    s.retire("A")
    s.flow("K>s")
    s.submit("z < x")
    s.flow()
    s.finish()
    assert s.future("z") == "finished"


def test_a17_forgotten_before_the_copy_began() -> None:
    """Nobody looks for it for ever."""
    s = Script("A", "B")
    s.computes("A", "x")
    s.retire("A")
    s.flow("K>s")
    s.flow("s>A", "A>s")
    s.release("x")
    s.flow("K>s")
    s.finish()
    assert "x" not in s.workers["B"].core.keys
    assert [*s.answer()["retired"]] == ["sim://A"]


def test_a18_a_copy_that_the_scheduler_counts_on_is_lost_on_the_way() -> None:
    """The task that needs it fetches it from where it is."""
    s = Script("A", "B")
    s.computes("A", "x")
    s.retire("A")
    s.flow()
    s.arrives("B", "A")
    s.flow()
    s.submit("y < x")
    s.flow()
    s.finish()
    assert s.future("y") == "finished"
    assert s.began == {"x": 1, "y": 1}


def test_an_actor_is_not_moved() -> None:
    s = Script("A", "B")
    s.computes("A", "x", actor=True)
    s.retire("A")
    s.flow()
    assert "actor 'x'" in s.answer()["kept"]["sim://A"]


def test_a_value_that_cannot_travel_keeps_its_worker() -> None:
    s = Script("A", "B")
    s.computes("A", "x")
    s.retire("A")
    s.flow()
    s.arrives("B", "A", broken="x")
    s.flow()
    assert "cannot be moved" in s.answer()["kept"]["sim://A"]


def test_a_nanny_that_does_not_answer() -> None:
    """No data is moved, and the worker stays."""
    s = Script("B")
    s.nanny("N")
    s.join("A", slot="N")
    s.flow()
    s.computes("A", "x")
    s.retire("A")
    s.flow()
    s.later(31.0)
    s.flow()
    assert "its nanny has not answered" in s.answer()["kept"]["sim://A"]
    assert isinstance(s.heard["N"][-1], Leave)
    assert not s.heard["N"][-1].on


def test_no_room() -> None:
    """As many workers stay as the data needs (R9)."""
    s = Script("A", "B", "C")
    for worker in s.scheduler.state.workers.values():
        worker.memory_limit = 20  # each may have two values of 8 bytes
    s.computes("A", "a")
    s.computes("B", "b")
    s.computes("C", "c")
    s.retire("A B C")
    s.finish()
    told = s.answer()
    assert len(told["retired"]) == 1
    assert len(told["kept"]) == 2
    assert set(s.began.values()) == {1}


def test_most_precious_first() -> None:
    """Scattered data, then what is costliest to compute; inputs that would have to be made first count."""
    s = Script("A", "B")
    for prefix, seconds in (("cheap", 0.01), ("dear", 5.0), ("base", 50.0), ("top", 0.01)):
        s.computes("A", f"{prefix}-0") if prefix != "top" else None
        s.scheduler.state.prefixes.get(prefix) and setattr(s.scheduler.state.prefixes[prefix], "duration", seconds)
    s.submit("base-1; top-1 < base-1", on="A")
    s.flow()
    s.ends("A", "base-1")
    s.flow()
    s.ends("A", "top-1")
    s.flow()
    s.scheduler.state.prefixes["base"].duration = 50.0
    s.release("base-0")
    s.scatters("A", "s")
    s.flow()
    s.retire("A")
    s.flow()
    assert s.fetches("B")["A"] == ["s", "top-1", "dear-0", "cheap-0"]
    s.finish()


def test_a_slot_that_registers_again_while_it_leaves() -> None:
    """Its worker died and its nanny was faster than the order: the newborn is refused."""
    s = Script("B")
    s.nanny("N")
    s.join("A", slot="N")
    s.flow()
    s.computes("A", "x")
    s.retire("A")
    s.flow("K>s")
    s.dies("A", known=False)
    s.join("A2", slot="N")
    s.flow()
    assert "A2" not in s.workers
    assert isinstance(s.heard["N"][-1], Close)


def test_w18_a_worker_that_is_paused_for_good_is_replaced() -> None:
    """Its data is moved, then its nanny is told to start another."""
    s = Script("B", paused_timeout=60.0)
    s.nanny("N")
    s.join("A", slot="N")
    s.flow()
    s.computes("A", "x")
    s.pauses("A")
    s.flow()
    s.later(30.0)
    s.flow()
    assert "A" in s.workers
    s.later(31.0)
    s.flow()
    s.arrives("B", "A")
    s.flow()
    assert s.on("x") == ["B"]
    assert isinstance(s.heard["N"][-1], RestartWorker)
    s.dies("A")
    s.join("A2", slot="N")
    s.flow()
    assert "A2" in s.workers
    s.finish()
    assert s.began == {"x": 1}


def test_a_task_that_a_thread_had_not_begun_runs_elsewhere() -> None:
    """It was handed to a thread, which had not begun it when its worker was told to leave."""
    s = Script("A", "B")
    s.submit("x", on="A B")
    s.flow()
    (first,) = s.on("x")
    other = "B" if first == "A" else "A"
    s.retire(first)
    s.flow()
    s.ends(first, "x", "skipped")
    s.flow()
    assert first not in s.workers
    assert s.runs(other) == ["x"]
    s.finish()
    assert [*s.answer()["retired"]] == [f"sim://{first}"]


def test_b5_two_that_hold_the_same_go_in_the_same_moment() -> None:
    """Neither counts on the other."""
    s = Script("A", "B", "C")
    s.computes("A", "x")
    s.submit("y < x", on="B")
    s.finish()
    s.release("y")
    s.flow()
    assert sorted(s.on("x")) == ["A", "B"]
    s.retire("A B")
    s.flow("K>s", "s>A", "s>B")
    s.together("A", "B")  # both have heard
    s.finish()
    assert s.on("x") == ["C"]
    assert s.began["x"] == 1


def test_a_copy_that_a_task_needed_too_and_needs_no_longer() -> None:
    """The task that it was on its way for is cancelled; the retirement still waits for it."""
    s = Script("A", "B")
    s.computes("A", "x")
    s.submit("y < x", on="B")
    s.flow()
    assert s.fetches("B") == {"A": ["x"]}
    s.retire("A")
    s.flow()
    s.cancel("y")
    s.flow()
    s.arrives("B", "A")
    s.flow()
    assert s.on("x") == ["B"]
    assert [*s.answer()["retired"]] == ["sim://A"]
    s.finish()


def test_r7_its_time_was_over_long_ago_and_now_it_is_to_go_for_good() -> None:
    """It waits for a running task; its nanny, asked only now, has the whole time to answer."""
    s = Script("B")
    s.nanny("N")
    s.join("A", slot="N")
    s.flow()
    s.submit("x", on="A")
    s.flow()
    s.says("A", AskRetirement("its time is over", None, True))
    s.flow()
    s.later(100.0)
    s.retire("A")
    s.flow()
    assert s.scheduler.departures
    s.says("N", Leaving(leave_number(s, "N")))
    s.ends("A", "x")
    s.finish()
    assert [*s.answer()["retired"]] == ["sim://A"]
    assert s.on("x") == ["B"]
