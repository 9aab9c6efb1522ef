"""Tasks, threads and repeated calls of shoal's own: they fail with a word, and go on where they can."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Any

import pytest

from shoal.shell import doors
from shoal.shell.loops import in_thread, new_event_loop
from shoal.shell.tasks import Every, Tasks, keep_running, limited
from tests.integration.hostile import DEEDS

RAISING = [name for name in DEEDS if name not in ("huge", "negative", "None", "text", "nan", "index")]


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is logged is not printed; a KeyboardInterrupt is none of a terminal's."""
    caplog.set_level(logging.CRITICAL + 1, "shoal.doors")
    monkeypatch.setattr(doors.signal, "getsignal", lambda number: None)


@pytest.mark.parametrize("deed", RAISING)
def test_a_task_that_fails_is_told_of(deed: str) -> None:
    """To who gave a function for that; the loop goes on."""
    told: list[BaseException] = []

    async def work() -> Any:
        await asyncio.sleep(0)
        return DEEDS[deed]()

    async def main() -> None:
        tasks = Tasks("the test")
        await tasks.spawn(work(), told.append)
        assert len(told) == 1
        assert not len(tasks)

    before = doors.COUNTS["program"]
    asyncio.run(main())
    assert doors.COUNTS["program"] == before + 1


def test_tasks_end_within_a_limit() -> None:
    """One that is cancelled before it begins is none that was never awaited; one that does not end is cancelled."""

    async def main() -> None:
        tasks = Tasks("the test")
        tasks.spawn(asyncio.sleep(60))
        await asyncio.sleep(0)
        tasks.spawn(asyncio.sleep(60))
        await tasks.end(0.01)
        assert not len(tasks)
        await limited("a step", lambda: asyncio.sleep(60), 0.01)

    asyncio.run(main())


def test_what_is_called_again_and_again_survives_a_failure() -> None:
    """As a heartbeat."""
    calls: list[str] = []

    def beat() -> float | None:
        calls.append("")
        if len(calls) == 1:
            raise SystemExit(1)
        return None

    async def main() -> None:
        Every(0.0, beat, "the beat")
        while len(calls) < 2:
            await asyncio.sleep(0.01)

    asyncio.run(main())


def test_what_is_called_again_and_again_may_end_itself() -> None:
    """As where a heartbeat closes its program."""
    calls: list[str] = []

    def beat() -> float | None:
        calls.append("")
        every.cancel()
        return 0.0

    async def main() -> None:
        nonlocal every
        every = Every(0.0, beat, "the beat")
        for _ in range(10):
            await asyncio.sleep(0)

    every: Any = None
    asyncio.run(main())
    assert len(calls) == 1


def test_a_thread_that_fails_begins_anew() -> None:
    """As the one that spills."""
    again, count = threading.Event(), [0]

    def work() -> None:
        count[0] += 1
        if count[0] == 1:
            raise SystemExit(1)
        again.set()

    keep_running("test", work, lambda: False).join(10)
    assert again.is_set()


def test_what_nobody_caught_on_a_loop_is_counted() -> None:
    """And what a helper's function raises comes back, whatever it is."""

    async def main() -> None:
        before = doors.COUNTS["program"]
        asyncio.get_running_loop().call_soon(DEEDS["Exception"])
        await asyncio.sleep(0.01)
        assert doors.COUNTS["program"] == before + 1
        for deed in RAISING:
            raised = None
            try:
                await in_thread(DEEDS[deed])
            except BaseException as error:
                raised = error
            assert raised is not None, deed

    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(main())
