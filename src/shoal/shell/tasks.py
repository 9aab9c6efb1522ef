"""The asyncio tasks and threads of shoal's own: none of them fails without a word.

What one raises is logged, and whoever waits for it is told by the function that was given with it. ``SystemExit`` and
``KeyboardInterrupt``, which would end the loop if they came out of a task, are failures as others are. A house rule
(``tests/tidy``) forbids ``create_task`` and its like outside of this file, but for what is listed there.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine
from time import sleep
from typing import Any, Final

from shoal.shell import doors

#: Seconds after which a thread that failed begins anew.
_PAUSE: Final = 0.5


class Tasks:
    """The tasks of one program, on its loop.

    Parameters
    ----------
    whose
        The program's name, for the log.
    """

    def __init__(self, whose: str) -> None:
        self._whose = whose
        self._all: set[asyncio.Task[Any]] = set()

    def spawn(
        self, coroutine: Coroutine[Any, Any, Any], otherwise: Callable[[BaseException], None] | None = None
    ) -> asyncio.Task[Any]:
        """Run a coroutine on the running loop.

        Parameters
        ----------
        otherwise
            Called with what it raised, once that is logged; the task's result is None then.
        """
        task = asyncio.get_running_loop().create_task(self._run(coroutine, otherwise))
        self._all.add(task)

        def ended(task: asyncio.Task[Any]) -> None:
            self._all.discard(task)
            coroutine.close()  # it was never begun, where the task was cancelled at once

        task.add_done_callback(ended)
        return task

    async def _run(self, coroutine: Coroutine[Any, Any, Any], otherwise: Callable[[BaseException], None] | None) -> Any:
        try:
            return await coroutine
        except BaseException as error:
            if doors.is_for_us(error, awaiting=True):
                raise
            doors.report("program", error, f"{self._whose}: {getattr(coroutine, '__qualname__', coroutine)}")
            if otherwise is not None:
                otherwise(error)
            return None

    def __len__(self) -> int:
        return len(self._all)

    def cancel(self) -> None:
        """Cancel all that run, but for the one that calls this."""
        for task in tuple(self._all):
            if task is not asyncio.current_task():
                task.cancel()

    async def end(self, patience: float) -> None:
        """Wait until all have ended; after ``patience`` seconds cancel those that have not."""
        me = asyncio.current_task()
        for limit in (patience, 1.0):
            left = {task for task in self._all if task is not me}
            if not left:
                return
            await asyncio.wait(left, timeout=limit)
            self.cancel()


def keep_running(name: str, work: Callable[[], None], closed: Callable[[], bool]) -> threading.Thread:
    """Start a thread that does ``work`` until that returns; where it raises, it is begun anew unless ``closed()``."""

    def run() -> None:
        while True:
            try:
                work()
                return
            except BaseException as error:
                if closed():
                    return
                doors.report("program", error, f"the thread {name}")
                sleep(_PAUSE)

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    return thread


class Every:
    """Calls a function on the running loop again and again; one call that fails does not end the row.

    Parameters
    ----------
    first
        Seconds until the first call.
    function
        Returns the seconds until the next call, or None to end.
    what
        What it does, for the log.
    """

    def __init__(self, first: float, function: Callable[[], float | None], what: str) -> None:
        self._function, self._what = function, what
        self._pause = first
        self._ended = False
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = self._loop.call_later(first, self._call)

    def _call(self) -> None:
        self._timer = None
        try:
            pause = self._function()
        except BaseException as error:
            doors.report("program", error, self._what)
            pause = max(self._pause, _PAUSE)
        if pause is not None and not self._ended:
            self._pause = pause
            self._timer = self._loop.call_later(pause, self._call)

    def cancel(self) -> None:
        """No more of it, also where the function itself calls this."""
        self._ended = True
        if self._timer is not None:
            self._timer.cancel()


async def limited(what: str, step: Callable[[], Awaitable[Any]], seconds: float) -> None:
    """Await a step of an end, for so long at the most; what it raises is logged, and the next step is taken."""
    try:
        async with asyncio.timeout(seconds):
            await step()
    except TimeoutError as error:
        doors.report("program", error, f"{what} within {seconds:g} s")
    except BaseException as error:
        if doors.is_for_us(error, awaiting=True):
            raise
        doors.report("program", error, what)
