"""Threads that run tasks. Results go to the store in the thread; the loop is woken once for many of them."""

from __future__ import annotations

import asyncio
import os
import queue
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from time import perf_counter, time
from types import CoroutineType
from typing import Any, Final

from shoal.core.effects import Run
from shoal.core.events import Outcome
from shoal.errors import Reschedule, SerializationError, TaskThreadError
from shoal.ids import key_from_wire
from shoal.messages import TaskError
from shoal.shell import current, doors, serialize
from shoal.shell.cells import Cells, Killed
from shoal.shell.current import Home
from shoal.shell.profiler import Profiler
from shoal.shell.recorder import Recorder
from shoal.shell.store import Held, LostValueError, Pickled, ValueStore

_local = threading.local()

#: The recursion limit that shoal itself needs; a task that sets a lower one does so for all threads.
_SHALLOWEST: Final = 400


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
    on_incident
        Called on the loop with what happened when a thread ended that should not have; another has taken its place.
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
        on_incident: Callable[[str], None] | None = None,
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
        self._on_left, self._on_lost, self._on_incident = on_left, on_lost, on_incident
        #: Tasks that were submitted and of which the loop has not heard again, in their order.
        self._given: dict[str, Run] = {}
        #: The threads that there are, and their numbers.
        self._threads: dict[threading.Thread, int | None] = {}
        self._missing: dict[str, Run] = {}
        self._outside: set[threading.Thread] = set()
        self._nthreads, self._short = nthreads, False
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
            thread = threading.Thread(target=self._work, args=(number,), name=f"shoal-task-{number}", daemon=True)
            self._threads[thread] = number
        try:
            thread.start()
        except BaseException:
            with self._lock:
                self._size -= 1
                del self._threads[thread]
                if number is not None:
                    self._numbers.append(number)
            raise

    def submit(self, run: Run) -> None:
        self._given[run.key] = run
        self._queue.put((run, self._store.take(run.deps)))

    def cancel(self, keys: Sequence[str], kill: bool = False) -> None:
        """Skip these if no thread has begun them; ``kill``: end those that run in processes of their own."""
        self._cancelled.update(key for key in keys if key in self._given)
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
        self._add_thread()
        _local.outside = True
        with self._lock:
            self._size -= 1
            self._outside.add(threading.current_thread())
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
            self._outside.discard(threading.current_thread())
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
        except BaseException as error:
            self._break_off(number, error)
            return
        self._leave(threading.current_thread(), number, not _local.outside)

    def _leave(self, thread: threading.Thread, number: int | None, of_the_pool: bool) -> bool:
        """A thread is gone, or about to be; False if that was known."""
        with self._lock:
            if thread not in self._threads:
                return False
            del self._threads[thread]
            self._outside.discard(thread)
            self._size -= of_the_pool
            if number is not None:
                self._numbers.append(number)
            return True

    def _begin(self, run: Run, inputs: dict[str, Held], number: int | None, recorder: Recorder | None) -> None:
        if run.key in self._cancelled:
            self._cancelled.discard(run.key)
            outcome = Outcome(run.key, "skipped")
        else:
            _local.key = run.key
            thread = threading.get_ident()
            self._inside[thread] = run.key
            try:
                if recorder is not None and number is not None:
                    recorder.begin(number, run.key)
                if self._profiler is not None:
                    self._profiler.begin(thread)
                outcome = self._execute(run, inputs) if run.apart is None else self._execute_apart(run, inputs)
            except BaseException as error:
                doors.report("bookkeeping", error, f"what surrounds the task {run.key!r}")
                outcome = self._failed(run.key, error)
            try:
                if self._profiler is not None:
                    grown = self._profiler.end(thread)
                    outcome.peak = outcome.peak or grown
                if self._make_room is not None:
                    self._make_room()
                if recorder is not None and number is not None:
                    recorder.end(number)
                if sys.getrecursionlimit() < _SHALLOWEST:
                    sys.setrecursionlimit(_SHALLOWEST)  # a task changed it, for all threads of this process
            except BaseException as error:
                doors.report("bookkeeping", error, f"what follows the task {run.key!r}")
            outcome.thread = -1 if number is None else number
            _local.key = None
            del self._inside[thread]
        self._tell(outcome)

    # -------------------------------------------------------------------------------------------- incidents

    def _failed(self, key: str, error: BaseException) -> Outcome:
        """The outcome of a task whose thread could not go on with it."""
        self._store.drop([key])
        told = TaskThreadError(f"the thread of the task {key!r} failed outside of its function: {doors.text_of(error)}")
        told.__cause__ = error
        now = time()
        return Outcome(key, "error", start=now, stop=now, error=serialize.dump_error(told))

    def _break_off(self, number: int | None, error: BaseException) -> None:
        """This thread cannot go on: the loop is closed, or something ended it that ends threads."""
        thread = threading.current_thread()
        if self._loop.is_closed():
            self._leave(thread, number, not _local.outside)
            return
        doors.report("bookkeeping", error, f"{thread.name} ended, and")
        self._replace(thread, number, threading.get_ident(), not _local.outside, error)

    def _replace(
        self, thread: threading.Thread, number: int | None, ident: int | None, of_the_pool: bool, error: BaseException
    ) -> None:
        """Put another thread in the place of one that is gone, and say how its task ended."""
        if not self._leave(thread, number, of_the_pool):
            return
        key = self._inside.pop(ident, None) if ident is not None else None
        try:
            if of_the_pool:
                self._add_thread()
        except BaseException as failure:
            doors.report("bookkeeping", failure, "a thread for tasks could not be started (it is tried again), and")
        if key is not None:
            self._tell(self._failed(key, error))
        what = f"the task {key!r}, which failed with it" if key is not None else "no task"
        text = f"{thread.name} ended ({doors.text_of(error)}) while it had {what}"
        if self._on_incident is not None:
            self._loop.call_soon_threadsafe(self._on_incident, text)

    def watch(self) -> None:
        """Look for threads that are gone without a word, and for tasks that no thread has; called on the loop.

        What is missing at two looks in a row is: a thread may be between two tasks at one of them.
        """
        if self._closed:
            return
        alive = set(os.listdir("/proc/self/task"))
        for thread, number in tuple(self._threads.items()):
            if thread.ident is not None and not (thread.is_alive() and str(thread.native_id) in alive):
                gone = RuntimeError("it was ended from outside of Python")
                self._replace(thread, number, thread.ident, thread not in self._outside, gone)
        short = self._size < self._nthreads
        if short and self._short:
            doors.call("bookkeeping", self._add_thread)
        self._short = short
        waiting = self._queue.qsize()
        inside = set(self._inside.values())
        taken = list(self._given.items())[: max(0, len(self._given) - waiting)]
        missing = {key: run for key, run in taken if key not in inside}
        for key, run in missing.items():
            if self._missing.get(key) is run and not self._done:
                doors.report(
                    "bookkeeping",
                    RuntimeError("a thread took it and was ended"),
                    f"the task {key!r} is run again: its thread",
                )
                self._tell(Outcome(key, "reschedule", start=time(), stop=time()))  # no thread has begun it
        self._missing = missing

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
                if self._given.pop(what.key, None) is not None:  # or it was given up, and is told of twice
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
        return Outcome(run.key, "ok", nbytes, doors.named(value), begun, begun + elapsed, inline)

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
        except BaseException as error:  # also what its inputs raise when they are unpickled
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
