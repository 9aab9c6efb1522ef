"""Threads that run tasks. Results go to the store in the thread; the loop is woken once for many of them."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from time import perf_counter, time
from typing import Any

from shoal.core.effects import Run
from shoal.core.events import Outcome
from shoal.errors import Reschedule, SerializationError
from shoal.ids import key_from_wire
from shoal.shell import current, serialize
from shoal.shell.current import Home
from shoal.shell.recorder import Recorder
from shoal.shell.store import ValueStore


class ThreadExecutor:
    """A pool of threads that takes tasks in order.

    Parameters
    ----------
    nthreads
        Tasks at the same time.
    store
        Where inputs are and results go.
    on_done
        Called on the loop with the outcomes since the last time.
    inline_bytes
        Results up to this size are pickled at once, to travel with the report.
    recorder
        Where it is written which key each thread is in.
    home
        What tasks find as their worker.
    """

    def __init__(
        self,
        nthreads: int,
        store: ValueStore,
        loop: asyncio.AbstractEventLoop,
        on_done: Callable[[list[Outcome]], None],
        inline_bytes: int = 8192,
        recorder: Recorder | None = None,
        home: Home | None = None,
    ) -> None:
        self._store, self._loop, self._on_done, self._inline_bytes = store, loop, on_done, inline_bytes
        self._recorder, self._home = recorder, home
        self._queue: queue.SimpleQueue[Run | None] = queue.SimpleQueue()
        self._done: deque[Outcome] = deque()
        self._signalled = False
        self._cancelled: set[str] = set()
        self._pickled: dict[str, Any] = {}
        self._functions: dict[str, Callable[..., Any]] = {}
        self._threads = [
            threading.Thread(target=self._work, args=(n,), name=f"shoal-task-{n}", daemon=True) for n in range(nthreads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, run: Run) -> None:
        self._queue.put(run)

    def cancel(self, keys: Sequence[str]) -> None:
        """Skip these if no thread has begun them."""
        self._cancelled.update(keys)

    def functions(self, functions: dict[str, Any]) -> None:
        """Keep pickled functions; None lets go of one."""
        for fn, payload in functions.items():
            if payload is None:
                self._pickled.pop(fn, None)
                self._functions.pop(fn, None)
            else:
                self._pickled[fn] = payload

    def close(self) -> None:
        for _ in self._threads:
            self._queue.put(None)

    def _work(self, number: int) -> None:
        recorder = self._recorder
        current.enter(self._home)
        while (run := self._queue.get()) is not None:
            if run.key in self._cancelled:
                self._cancelled.discard(run.key)
                outcome = Outcome(run.key, "skipped")
            else:
                if recorder is not None:
                    recorder.begin(number, run.key)
                outcome = self._execute(run)
                if recorder is not None:
                    recorder.end(number)
            self._done.append(outcome)
            if not self._signalled:
                self._signalled = True
                try:
                    self._loop.call_soon_threadsafe(self._collect)
                except RuntimeError:
                    return  # the loop is closed: this process is ending

    def _collect(self) -> None:
        self._signalled = False
        items = []
        while self._done:
            items.append(self._done.popleft())
        for item in items:
            self._cancelled.discard(item.key)
        if items:
            self._on_done(items)

    def _execute(self, run: Run) -> Outcome:
        begun, tick = time(), perf_counter()
        try:
            inputs = {key: self._store.get(key) for key in run.deps}
            if run.fn:
                function = self._functions.get(run.fn) or self._load(run.fn)
                args, kwargs = serialize.loads_with_inputs(run.payload, inputs)
                tick = perf_counter()
                value = function(*args, **kwargs)
            else:
                node = serialize.loads_with_inputs(run.payload, inputs)
                tick = perf_counter()
                value = node({key_from_wire(key): found for key, found in inputs.items()})
        except Reschedule:
            return Outcome(run.key, "reschedule", start=begun, stop=begun + perf_counter() - tick)
        except BaseException as error:
            stop = begun + perf_counter() - tick
            return Outcome(run.key, "error", start=begun, stop=stop, error=serialize.dump_error(error))
        elapsed = perf_counter() - tick
        nbytes = serialize.sizeof(value)
        inline = None
        if run.inline and nbytes <= self._inline_bytes:
            try:
                inline = serialize.dumps(value)
            except SerializationError:
                inline = None  # it may still be used here; whoever asks for it is told why it cannot travel
            if inline is not None and (type(inline) is not bytes or len(inline) > self._inline_bytes):
                inline = None
        self._store.put(run.key, value)
        return Outcome(run.key, "ok", nbytes, type(value).__name__, begun, begun + elapsed, inline)

    def _load(self, fn: str) -> Callable[..., Any]:
        function: Callable[..., Any] = serialize.loads(self._pickled[fn])
        self._functions[fn] = function
        return function
