"""Threads that run tasks. Results go to the store in the thread; the loop is woken once for many of them."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from time import perf_counter, time
from types import CoroutineType
from typing import Any

from shoal.core.effects import Run
from shoal.core.events import Outcome
from shoal.errors import Reschedule, SerializationError
from shoal.ids import key_from_wire
from shoal.messages import TaskError
from shoal.shell import current, serialize
from shoal.shell.cells import Cells, Killed
from shoal.shell.current import Home
from shoal.shell.profiler import Profiler
from shoal.shell.recorder import Recorder
from shoal.shell.store import Held, LostValueError, Pickled, ValueStore

_local = threading.local()


def current_pool() -> ThreadExecutor | None:
    """The pool whose task runs in this thread, or None outside of tasks."""
    return getattr(_local, "executor", None)


def current_key() -> str | None:
    """The key of the task that this thread runs, or None outside of tasks."""
    return getattr(_local, "key", None)


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
    on_left
        Called on the loop with a key that left the pool (True) or came back (False).
    on_lost
        Called on the loop with the key of an input whose file cannot be read, and why.
    inline_bytes
        Results up to this size are pickled at once, to travel with the report.
    recorder
        Where it is written which key each thread is in.
    home
        What tasks find as their worker.
    numbers
        Numbers for threads, shared by all pools of a process, the next to be given last.
    make_room
        Called in the thread when values came into memory.
    profiler
        Told of when tasks begin and end.
    cells
        Processes for tasks that may have to be ended.
    """

    def __init__(
        self,
        nthreads: int,
        store: ValueStore,
        loop: asyncio.AbstractEventLoop,
        on_done: Callable[[list[Outcome]], None],
        on_left: Callable[[str, bool], None],
        on_lost: Callable[[str, str], None],
        inline_bytes: int = 8192,
        recorder: Recorder | None = None,
        home: Home | None = None,
        numbers: list[int] | None = None,
        make_room: Callable[[], None] | None = None,
        profiler: Profiler | None = None,
        cells: Cells | None = None,
    ) -> None:
        self._store, self._loop, self._on_done, self._inline_bytes = store, loop, on_done, inline_bytes
        self._recorder, self._home, self._make_room = recorder, home, make_room
        self._profiler, self._cells = profiler, cells
        self._queue: queue.SimpleQueue[tuple[Run, dict[str, Held]] | threading.Event | None] = queue.SimpleQueue()
        #: What each thread is in, by its identity.
        self._inside: dict[int, str] = {}
        self._done: deque[Outcome | tuple[str, bool]] = deque()
        self._signalled = False
        self._cancelled: set[str] = set()
        self._pickled: dict[str, Any] = {}
        self._functions: dict[str, Callable[..., Any]] = {}
        self._on_left, self._on_lost = on_left, on_lost
        self._lock = threading.Lock()
        self._size = 0
        self._numbers = list(range(nthreads))[::-1] if numbers is None else numbers
        self._closed = False
        for _ in range(nthreads):
            self._add_thread()

    def _add_thread(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._size += 1
            number = self._numbers.pop() if self._numbers else None
        threading.Thread(target=self._work, args=(number,), name=f"shoal-task-{number}", daemon=True).start()

    def submit(self, run: Run) -> None:
        self._queue.put((run, self._store.take(run.deps)))

    def cancel(self, keys: Sequence[str], kill: bool = False) -> None:
        """Skip these if no thread has begun them; ``kill``: end those that run in processes of their own."""
        self._cancelled.update(keys)
        if kill and self._cells is not None:
            self._cells.kill(keys)

    def functions(self, functions: dict[str, Any]) -> None:
        """Keep pickled functions; None lets go of one."""
        for fn, payload in functions.items():
            if payload is None:
                self._pickled.pop(fn, None)
                self._functions.pop(fn, None)
            else:
                self._pickled[fn] = payload

    def running(self) -> dict[int, str]:
        """The key that each thread is in, by the identity of the thread."""
        return dict(self._inside)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            size = self._size
        for _ in range(size):
            self._queue.put(None)

    # -------------------------------------------------------------------------------------------- out of the pool

    def secede(self) -> None:
        """The task in this thread leaves the pool: another thread takes its place.

        Raises
        ------
        ValueError
            If this thread runs no task of this pool.
        """
        key = getattr(_local, "key", None)
        if key is None or _local.executor is not self:
            raise ValueError("secede works inside of tasks only")
        if _local.outside:
            return
        _local.outside = True
        with self._lock:
            self._size -= 1
        self._add_thread()
        self._tell((key, True))

    def is_outside(self) -> bool:
        """Whether the task in this thread has left the pool, or there is none."""
        return getattr(_local, "key", None) is None or bool(_local.outside)

    def rejoin(self) -> None:
        """The task in this thread comes back: it waits until another thread of the pool has gone."""
        if not getattr(_local, "outside", False):
            return
        gone = threading.Event()
        self._queue.put(gone)
        gone.wait()
        _local.outside = False
        with self._lock:
            self._size += 1
        self._tell((_local.key, False))

    def _work(self, number: int | None) -> None:
        recorder = self._recorder if number is not None else None
        current.enter(self._home)
        _local.executor, _local.outside = self, False
        try:
            while not _local.outside and (run := self._queue.get()) is not None:
                if isinstance(run, threading.Event):
                    run.set()
                    break
                self._begin(*run, number, recorder)
                del run  # or it would keep the task's inputs until the next one comes
        except RuntimeError:
            pass  # the loop is closed: this process is ending
        with self._lock:
            self._size -= not _local.outside
            if number is not None:
                self._numbers.append(number)

    def _begin(self, run: Run, inputs: dict[str, Held], number: int | None, recorder: Recorder | None) -> None:
        if run.key in self._cancelled:
            self._cancelled.discard(run.key)
            outcome = Outcome(run.key, "skipped")
        else:
            if recorder is not None and number is not None:
                recorder.begin(number, run.key)
            _local.key = run.key
            thread = threading.get_ident()
            self._inside[thread] = run.key
            if self._profiler is not None:
                self._profiler.begin(thread)
            outcome = self._execute(run, inputs) if run.apart is None else self._execute_apart(run, inputs)
            if self._profiler is not None:
                grown = self._profiler.end(thread)
                outcome.peak = outcome.peak or grown
            if self._make_room is not None:
                self._make_room()
            outcome.thread = -1 if number is None else number
            _local.key = None
            del self._inside[thread]
            if recorder is not None and number is not None:
                recorder.end(number)
        self._tell(outcome)

    def _tell(self, what: Outcome | tuple[str, bool]) -> None:
        """Have the loop hear of it, in the order in which it happened."""
        self._done.append(what)
        if not self._signalled:
            self._signalled = True
            self._loop.call_soon_threadsafe(self._collect)

    def _collect(self) -> None:
        self._signalled = False
        items: list[Outcome] = []
        while self._done:
            what = self._done.popleft()
            if isinstance(what, Outcome):
                self._cancelled.discard(what.key)
                items.append(what)
                continue
            if items:
                self._on_done(items)
                items = []
            self._on_left(*what)
        if items:
            self._on_done(items)

    def _execute(self, run: Run, taken: dict[str, Held]) -> Outcome:
        begun, tick = time(), perf_counter()
        try:
            inputs = {key: self._store.load(key, held) for key, held in taken.items()}
            if run.fn:
                function = self._functions.get(run.fn) or self._load(run.fn)
                args, kwargs = serialize.loads_with_inputs(run.payload, inputs)
                tick = perf_counter()
                value = function(*args, **kwargs)
            else:
                node = serialize.loads_with_inputs(run.payload, inputs)
                tick = perf_counter()
                value = node({key_from_wire(key): found for key, found in inputs.items()})
            if type(value) is CoroutineType:
                value = asyncio.run(value)
        except LostValueError as error:
            self._loop.call_soon_threadsafe(self._on_lost, *error.args)
            return Outcome(run.key, "reschedule", start=begun, stop=begun)
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
                inline = serialize.dumps_safely(value)
            except SerializationError:
                inline = None  # it may still be used here; whoever asks for it is told why it cannot travel
            if inline is not None and (type(inline) is not bytes or len(inline) > self._inline_bytes):
                inline = None
        self._store.put(run.key, value, nbytes)
        return Outcome(run.key, "ok", nbytes, type(value).__name__, begun, begun + elapsed, inline)

    def _execute_apart(self, run: Run, taken: dict[str, Held]) -> Outcome:
        """Run a task in a process of its own."""
        begun, key = time(), run.key
        assert self._cells is not None
        assert run.apart is not None
        try:
            inputs = {dep: self._store.load(dep, held) for dep, held in taken.items()}
            function = self._pickled[run.fn] if run.fn else None
            told, payload = self._cells.run(key, run.fn, function, run.payload, inputs, run.apart)
        except Killed:
            return Outcome(key, "killed", start=begun, stop=begun)
        except LostValueError as error:
            self._loop.call_soon_threadsafe(self._on_lost, *error.args)
            return Outcome(key, "reschedule", start=begun, stop=begun)
        except Exception as error:
            return Outcome(key, "error", start=begun, stop=time(), error=serialize.dump_error(error))
        start, stop, peak = told["start"], told["stop"], told["peak"]
        if not told["ok"]:
            if told["again"]:
                return Outcome(key, "reschedule", start=start, stop=stop)
            return Outcome(key, "error", start=start, stop=stop, error=TaskError(*told["error"]), peak=peak)
        inline = payload if run.inline and type(payload) is bytes and len(payload) <= self._inline_bytes else None
        self._store.put(key, Pickled(payload), told["nbytes"])
        return Outcome(key, "ok", told["nbytes"], told["type"], start, stop, inline, peak=peak)

    def _load(self, fn: str) -> Callable[..., Any]:
        function: Callable[..., Any] = serialize.loads(self._pickled[fn])
        self._functions[fn] = function
        return function
