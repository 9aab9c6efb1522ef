"""Event orders that wedged other systems, told to a scheduler and its workers: the ids are those of the lists they
come from. ``finish`` lets all that is left happen, and fails if something wanted is not there then, or is wrong.
"""

from __future__ import annotations

import pytest

from shoal.messages import AddKeys, FreeKeys, GivenBack, KeyErred, KeysCancelled, KilledTask, Missing, Steal
from shoal.sim.script import Script


def moved_while_it_runs() -> Script:
    """x executes on A, is let go of, and is wanted again: on B, where it ends. y, which needs it, is sent to A."""
    s = Script("A", "B")
    s.submit("x", on="A")
    s.flow()
    s.release("x")
    s.flow()
    s.computes("B", "x")
    s.submit("y < x", on="A")
    s.flow()
    assert s.label("A", "x") == "resumed"
    return s


def test_w3_a1_a_run_that_nobody_waits_for_fails_where_its_value_is_needed() -> None:
    """y fetches x from B; the failure changes nothing."""
    s = moved_while_it_runs()
    s.ends("A", "x", "error")
    assert s.fetches("A") == {"B": ["x"]}
    s.finish()
    assert s.future("y") == "finished"
    assert not any(isinstance(message, KeyErred) for message in s.heard["K"])


def test_a1_the_same_run_ends_well() -> None:
    """Its value serves y, and counts as a copy."""
    s = moved_while_it_runs()
    s.ends("A", "x")
    s.finish()
    assert s.began == {"x": 2, "y": 1}
    assert s.on("x") == ["B", "A"]


def test_a2_the_same_run_asks_to_be_rescheduled() -> None:
    """That is nobody's concern any more: y fetches x."""
    s = moved_while_it_runs()
    s.ends("A", "x", "reschedule")
    s.finish()
    assert s.began == {"x": 2, "y": 1}


@pytest.mark.parametrize("needed_again", [False, True])
def test_a3_a_task_that_was_let_go_of_leaves_the_pool(needed_again: bool) -> None:
    """Also where its value is wanted as a copy by then: the worker goes on."""
    s = moved_while_it_runs() if needed_again else Script("A", "B")
    if not needed_again:
        s.submit("x", on="A")
        s.flow()
        s.release("x")
        s.flow()
    s.secedes("A", "x")
    s.flow()
    s.ends("A", "x")
    s.finish()
    assert s.scheduler.state.workers["A"].n_long_running == 0  # type: ignore[index]


def test_a5_a_transfer_that_nobody_waits_for_brings_something_unreadable() -> None:
    """Nothing is left of it."""
    s = Script("A", "B")
    s.computes("A", "x")
    s.submit("y < x", on="B")
    s.flow()
    s.release("y")
    s.flow()
    s.arrives("B", "A", broken="x")
    assert s.label("B", "x") == "forgotten"
    s.finish()


def test_a6_a_stale_word_of_a_missing_key_comes_while_it_is_computed_anew() -> None:
    """B was fetching x from A when A died; then B itself is to compute x."""
    s = Script("A", "B")
    s.computes("A", "x", allow_other_workers=True)
    s.submit("y < x", on="B")
    s.flow()
    assert s.fetches("B") == {"A": ["x"]}
    s.forgets("A", "x")
    s.arrives("B", "A")
    s.dies("A")
    assert [message.key for message in s.waiting("B>s") if isinstance(message, Missing)] == ["x"]
    s.flow()
    s.finish()
    assert s.began == {"x": 2, "y": 1}


def test_a7_words_about_copies_and_ends_that_were_taken_back() -> None:
    """A dies while B, which has a copy of x by then, finishes y: stale words of B change nothing."""
    s = Script("A", "B")
    s.computes("A", "x", allow_other_workers=True)
    s.submit("y < x", on="B")
    s.flow()
    s.arrives("B", "A")
    assert any(isinstance(message, AddKeys) for message in s.waiting("B>s"))
    s.dies("A")  # before the scheduler hears of the copy
    s.ends("B", "y")
    s.finish()


def test_a9_a_theft_is_confirmed_when_the_task_is_forgotten() -> None:
    """The answer is passed over; a later submission of the key is another."""
    s = stolen()
    s.release("t-1")
    s.flow("K>s", "A>s")
    s.flow()
    s.submit("t-1")
    s.finish()
    assert s.future("t-1") == "finished"


def stolen() -> Script:
    """A has two tasks for its thread and is asked for the second, on behalf of B; its answer is on its way."""
    s = Script("A")
    s.computes("A", "d", allow_other_workers=True)
    s.submit("t-0 < d; t-1 < d; t-2 < d", "t-0 t-1 t-2")
    s.flow()
    s.join("B")
    s.flow("B>s")
    s.later(0.1)
    asked = [message.key for message in s.waiting("s>A") if isinstance(message, Steal)]
    assert asked
    s.flow("s>A")
    return s


@pytest.mark.parametrize("who", ["A", "B"])
@pytest.mark.parametrize("answered", [False, True])
def test_s2_a10_victim_or_thief_dies_while_the_request_is_out(who: str, answered: bool) -> None:
    """The task runs somewhere."""
    s = stolen()
    if answered:
        s.flow("A>s")
    s.dies(who)
    s.finish()


def test_s3_a_theft_and_the_end_cross() -> None:
    """The result is used, and nothing runs twice."""
    s = Script("A")
    s.computes("A", "d")
    s.submit("t-0 < d; t-1 < d", "t-0 t-1")
    s.flow()
    s.join("B")
    s.flow("B>s")
    s.later(0.1)
    assert any(isinstance(message, Steal) for message in s.waiting("s>A"))
    s.ends("A", "t-0")
    s.ends("A", "t-1")
    s.finish()
    assert s.began == {"d": 1, "t-0": 1, "t-1": 1}


def test_a11_a_copy_that_nobody_needs_any_more_comes() -> None:
    """It is announced at most once, and dropped; the two do not argue about it."""
    s = Script("A", "B")
    s.computes("A", "d")
    s.submit("k < d", on="B")
    s.flow()
    s.release("d k")
    s.flow("K>s")
    s.arrives("B", "A")
    s.flow()
    assert s.label("B", "d") == "forgotten"
    assert s.state("d") == "forgotten"
    assert len(s.heard["s"]) < 20


def test_a12_inputs_are_gone_when_a_running_task_is_wanted_again() -> None:
    """y runs on A and is cancelled, its input is freed; then both are asked for anew."""
    s = Script("A")
    s.submit("x; y < x")
    s.flow()
    s.ends("A", "x")
    assert s.runs("A") == ["y"]
    s.release("y")
    s.flow()
    s.submit("x; y < x")
    s.flow()
    s.ends("A", "y", "skipped")
    s.finish()
    assert s.began["y"] == 2


def test_a13_a_task_and_a_pause_meet() -> None:
    """What comes to a paused worker goes back at once; later it takes tasks again."""
    s = Script("A")
    s.submit("x")
    s.flow("K>s")
    s.pauses("A")
    s.flow()
    assert s.state("x") == "no-worker"
    assert "A is paused" in s.why("x")
    s.resumes("A")
    s.finish()
    assert s.began == {"x": 1}


def test_w17_a_paused_worker_gives_back_what_no_thread_has() -> None:
    """The others run it."""
    s = Script("A", saturation=4.0)
    s.submit("t-0; t-1; t-2; t-3", "t-0 t-1 t-2 t-3")
    s.flow()
    assert s.runs("A") == ["t-0"]
    s.pauses("A")
    assert [len(message.items) for message in s.waiting("A>s") if isinstance(message, GivenBack)] == [3]
    s.join("B")
    s.flow()
    assert s.on("t-0") == ["A"]
    assert s.on("t-1") == ["B"]
    s.finish()
    assert s.on("t-3") == ["B"]


def test_a15_a_key_is_fetched_again_after_it_was_forgotten() -> None:
    """What was planned for its first life is not taken for its second."""
    s = Script("A", "B")
    s.computes("A", "a b")
    s.submit("y < a; z < b", "y z", on="B")
    s.flow()
    s.release("z")
    s.flow()
    s.submit("z < b", on="B")
    s.flow()
    s.finish()
    assert s.began == {"a": 1, "b": 1, "y": 1, "z": 1}


def test_a19_scattered_data_and_a_task_of_the_same_name() -> None:
    """The data came first: the task's recipe is passed over, and what was computed meanwhile too."""
    s = Script("A", "B")
    s.enter("L")
    s.flow()
    s.scatters("A", "x", "L")
    s.submit("x", on="B")
    s.flow("K>s")
    s.flow()
    s.finish()
    assert s.future("x", "L") == "finished"
    assert s.future("x", "K") == "finished"


def test_a20_a_late_word_of_a_task_that_left_the_pool() -> None:
    """It was cancelled and is computed elsewhere by then."""
    s = Script("A", "B")
    s.submit("x", on="A")
    s.flow()
    s.secedes("A", "x")
    s.release("x")
    s.flow("K>s")
    s.submit("x", on="B")
    s.flow("K>s")
    s.flow()
    b = s.scheduler.state.workers["B"]  # type: ignore[index]
    assert (b.n_long_running, b.n_runnable) == (0, 1)
    s.finish()


def test_a21_an_end_and_a_release_cross_and_the_task_is_queued_anew() -> None:
    """The stale end does not make it done: its value is freed already."""
    s = Script("A", saturation=1.0, backlog=0.0)
    s.submit("x")
    s.flow()
    s.release("x")
    s.flow("K>s")
    s.ends("A", "x")
    s.submit("w", priority=10)
    s.submit("x")
    s.flow("K>s")
    assert s.state("x") == "queued"
    s.flow("A>s")
    assert s.state("x") in ("queued", "processing")
    s.finish()


def test_a22_the_input_of_a_queued_task_is_lost_with_the_only_worker() -> None:
    """Both are done when another comes."""
    s = Script("A", saturation=1.0, backlog=0.0)
    s.submit("d")
    s.flow()
    s.ends("A", "d")
    s.flow()
    keys = [f"t-{n}" for n in range(12)]
    s.submit("; ".join(f"{key} < d" for key in keys), " ".join(keys))
    s.flow()
    assert "queued" in {s.state(f"t-{n}") for n in range(12)}
    s.dies("A")
    s.flow()
    assert s.state("d") == "no-worker"
    s.join("B")
    s.finish()


def test_a23_an_input_that_was_done_is_lost_and_then_fails() -> None:
    """What waits for it fails with it."""
    s = Script("A", "B")
    s.computes("A", "x", allow_other_workers=True)
    s.submit("slow", on="B")
    s.submit("y-0 < x slow; y-1 < x slow", "y-0 y-1")
    s.flow()
    s.dies("A")
    s.flow()
    s.ends("B", "slow")
    s.flow()
    s.ends("B", "x", "error")
    s.finish()
    assert (s.future("y-0"), s.future("y-1"), s.future("x")) == ("error", "error", "error")


def test_a24_all_threads_wait_for_tasks_that_are_queued() -> None:
    """A task that leaves the pool makes room for what it waits for."""
    s = Script("A", saturation=1.0, backlog=0.0)
    s.submit("parent")
    s.flow()
    s.submit("kid")
    s.flow()
    assert s.state("kid") == "queued"
    s.secedes("A", "parent")
    s.flow()
    assert s.runs("A") == ["parent", "kid"]
    s.finish()


def test_a24_also_where_the_parent_holds_a_resource_that_others_wait_for() -> None:
    """Tasks that wait for the resource take no room from the kid."""
    s = Script("A", resources={"R": 1}, saturation=1.0, backlog=0.0)
    s.submit("parent", resources={"R": 1.0})
    s.submit("other-0; other-1", "other-0 other-1", resources={"R": 1.0})
    s.flow()
    s.submit("kid")
    s.flow()
    s.secedes("A", "parent")
    s.flow()
    assert "kid" in s.runs("A")
    s.finish()


def test_a27_w10_a_value_that_nobody_can_read_is_an_error_and_no_loop() -> None:
    """The task that needs it fails, with the reason."""
    s = Script("A", "B")
    s.computes("A", "x")
    s.submit("y < x", on="B")
    s.flow()
    s.arrives("B", "A", broken="x")
    s.finish()
    assert s.future("y") == "error"
    assert s.future("x") == "finished"


def test_a29_w9_a_peer_that_never_answers() -> None:
    """It is asked again, by itself and by the scheduler; then its copy is given up, and the value computed again."""
    s = Script("A", "B", worker_ttl=None)
    s.computes("A", "x", allow_other_workers=True)
    s.submit("y < x", on="B")
    s.flow()
    for _ in range(200):
        if s.fetches("B"):
            s.fails_to_reach("B", "A")
        s.flow("B>s", "s>B", "s>K")
        if s.state("x") != "memory":
            break
        s.later(1.0)
    assert s.state("x") == "processing"
    assert any("that copy is given up" in text for text in s.logs)
    s.finish()
    assert s.began["x"] == 2


def test_w9_another_holder_is_asked_meanwhile() -> None:
    """For all keys that wait, not only for one."""
    s = Script("A", "B", "C")
    s.computes("A", "a b")
    s.submit("c < a b", on="C")
    s.flow()
    s.arrives("C", "A")
    s.flow()
    s.submit("y < a; z < b", "y z", on="B")
    s.flow()
    for _ in range(20):
        for peer in list(s.fetches("B")):
            if peer == "A":
                s.fails_to_reach("B", "A")
            else:
                s.arrives("B", peer)
        s.later(0.5)
        s.flow()
    assert s.began["a"] == s.began["b"] == 1
    s.finish()


def test_a30_w21_the_same_key_with_another_definition_and_more_inputs() -> None:
    """Released and submitted anew while it runs: the newer definition is what is computed."""
    s = Script("A", "B")
    s.submit("x")
    s.flow()
    s.release("x")
    s.submit("d; x < d", payload=b"another")
    s.finish()
    assert s.future("x") == "finished"
    assert not s.logs or all("another definition" not in text for text in s.logs)


def test_w21_copies_of_the_older_definition_are_on_their_way() -> None:
    """They are not taken for the newer one."""
    s = Script("A", "B", "C")
    s.computes("A", "x")
    s.submit("y < x", on="C")
    s.flow()
    assert s.fetches("C") == {"A": ["x"]}
    s.release("x y")
    s.flow("K>s")
    s.submit("x", payload=b"another", on="B")
    s.flow("K>s", "s>B", "s>C")
    s.ends("B", "x")
    s.flow("B>s")
    s.submit("y < x", on="C", payload=b"another")
    s.flow("K>s", "s>C")
    s.arrives("C", "A")  # which has not heard yet that it is to be dropped
    s.finish()
    assert s.on("x") == ["B", "C"]


def test_w21_data_is_put_where_a_task_of_that_name_is_about_to_come() -> None:
    """The recipe counts: what was put there is not taken for its result."""
    s = Script("A")
    s.enter("L")
    s.flow()
    s.submit("x", on="A", payload=b"another")
    s.flow("K>s")
    s.scatters("A", "x", "L")
    s.finish()
    assert s.began == {"x": 1}
    assert s.future("x", "L") == "finished"


def test_w21_wanted_by_another_the_first_definition_counts() -> None:
    """And both are warned of it."""
    s = Script("A")
    s.enter("L")
    s.submit("x")
    s.flow()
    s.submit("x", client="L", payload=b"another")
    s.finish()
    assert any("another definition" in text for text in s.logs)
    assert s.future("x", "L") == "finished"


def test_a32_reports_of_a_fetch_for_an_earlier_life_of_a_key() -> None:
    """Cancelled and submitted again while its input is on its way."""
    s = Script("A", "B")
    s.computes("A", "x")
    s.submit("y < x", on="B")
    s.flow()
    s.cancel("y")
    s.flow("K>s")
    s.submit("y < x", on="B")
    s.flow("K>s")
    s.arrives("B", "A")
    s.finish()
    assert s.began == {"x": 1, "y": 1}


def test_w11_the_scheduler_counts_on_a_copy_that_is_not_there() -> None:
    """Who asks for it finds out, the scheduler is told, and it is computed again."""
    s = Script("A", "B")
    s.computes("A", "x", allow_other_workers=True)
    s.forgets("A", "x")
    s.submit("y < x", on="B")
    s.finish()
    assert s.began == {"x": 2, "y": 1}
    assert any(isinstance(message, FreeKeys) and "x" in message.keys for message in s.heard["A"])


def test_w13_a_worker_closes_and_an_assignment_crosses() -> None:
    """The task goes to somebody else."""
    s = Script("A")
    s.submit("x")
    s.flow("K>s")
    assert s.waiting("s>A")
    s.dies("A")
    s.join("B")
    s.finish()
    assert s.on("x") == ["B"]


def test_w14_a_new_worker_comes_up_at_the_address_of_a_dead_one() -> None:
    """Late words of the dead one change nothing."""
    s = Script()
    s.join("A1", slot="A", address="tcp://here:1")
    s.submit("x")
    s.flow()
    s.ends("A1", "x")  # and the word of it is on its way
    s.dies("A1", known=False)
    s.join("A2", slot="A", address="tcp://here:1")
    s.flow("A2>s")
    s.learns("A1")
    s.flow("A1>s")
    assert s.on("x") == ["A2"]
    s.finish()
    assert s.began == {"x": 2}


def test_w16_released_while_it_runs() -> None:
    """Its thread is counted until it ends, and that is said; then the worker is given more."""
    s = Script("A", saturation=1.0, backlog=0.0)
    s.submit("x")
    s.flow()
    s.release("x")
    s.flow()
    s.submit("y")
    s.flow()
    assert s.state("y") == "queued"
    assert s.scheduler.state.workers["A"].n_runnable == 1  # type: ignore[index]
    s.ends("A", "x")
    s.flow()
    assert s.runs("A") == ["y"]
    s.finish()


def test_w20_two_clients_want_the_same_key() -> None:
    """One cancels, one vanishes; the third has its result."""
    s = Script("A")
    s.enter("L")
    s.enter("M")
    for client in "KLM":
        s.submit("x", client=client)
    s.flow()
    s.cancel("x")
    s.dies("L")
    s.flow()
    assert [message.keys for message in s.heard["K"] if isinstance(message, KeysCancelled)] == [["x"]]
    s.finish()
    assert s.future("x", "M") == "finished"
    assert s.began == {"x": 1}


def test_w22_the_holder_of_what_many_tasks_need_dies() -> None:
    """Work in proportion to their number, once; not for every event."""
    transitions = []
    for count in (500, 1000):
        s = Script("A", "B", story_length=10)
        s.submit("x", on="A", allow_other_workers=True)
        s.flow()
        s.ends("A", "x")
        s.flow()
        keys = [f"t-{n}" for n in range(count)]
        s.submit("; ".join(f"{key} < x" for key in keys), " ".join(keys))
        s.flow("K>s")
        before = s.scheduler.state.transitions
        s.dies("A")
        s.flow()
        transitions.append(s.scheduler.state.transitions - before)
    assert transitions[1] <= 2 * transitions[0] + 20


def test_w23_only_tasks_that_ran_are_blamed() -> None:
    """Without a nanny: no more of them than the worker had threads."""
    s = Script("A", saturation=4.0, allowed_failures=0)
    s.submit("t-0; t-1; t-2", "t-0 t-1 t-2")
    s.flow()
    s.dies("A")
    s.flow()
    assert [message.key for message in s.heard["K"] if isinstance(message, KilledTask)] == ["t-0"]
    s.join("B")
    s.finish()
    assert s.future("t-1") == "finished"


def test_no_worker_that_may_run_it_for_too_long() -> None:
    """It fails, with what it waited for; what comes in time does not."""
    s = Script("A", no_workers_timeout=30.0)
    s.submit("x", resources={"GPU": 1.0})
    s.submit("y", on="B")
    s.flow()
    s.later(10.0)
    s.join("B")
    s.flow()
    s.later(25.0)
    s.finish()
    assert s.future("x") == "error"
    assert s.future("y") == "finished"
