"""Giving tasks to workers (at once, when one has room, or ahead of their inputs), and taking them back."""

from __future__ import annotations

from heapq import heapify, heappop, heapreplace
from typing import Final
from zlib import crc32

from shoal.core.scheduler import placement
from shoal.core.scheduler.roster import (
    WorkerRecord,
)
from shoal.core.scheduler.scarce import Claims, Shape
from shoal.core.scheduler.tables import Tables
from shoal.core.scheduler.task import Task, TaskEvent, TaskState
from shoal.ids import WorkerId
from shoal.messages import (
    Blob,
    Compute,
    ComputeTask,
    Dep,
)

#: Tasks that a worker is given before their inputs are computed there.
AHEAD_MOST: Final = 256


class Assignment(Tables):
    """How a task that is ready gets to a worker, and how it gets away from it."""

    def end_theft(self, task: Task) -> None:
        """``task`` is asked of nobody any more, and waits for no thief."""
        if task.thief is not None:
            task.thief.n_stealing -= 1
            task.thief = None

    def _place(self, task: Task) -> None:
        thief = task.thief
        shape = task.shape
        if thief is not None:
            self.end_theft(task)
            if thief.running and placement.allowed(task, thief) and (shape is None or shape.fits(thief)):
                self._assign(task, thief)
                return
        if shape is not None:
            self._put_in_line(task, shape)
            return
        if not placement.is_restricted(task) and placement.is_rootish(self, task):
            if self.running_nthreads:
                self._advance(task, TaskEvent.ENQUEUE)
                self.queue.push(task)
                return
            worker = None
        else:
            worker = placement.choose(self, task)
        if worker is not None:
            self._assign(task, worker)
        elif task.state is TaskState.WAITING:
            self._strand(task)

    def _put_in_line(self, task: Task, shape: Shape) -> None:
        """``task`` takes what is scarce: it goes to a worker when its turn comes and that is free."""
        if shape.forgotten:
            assert task.options is not None
            task.shape = shape = self.scarce.shape_of(task.options, self.workers.values()) or shape
        if shape.able:
            self._advance(task, TaskEvent.ENQUEUE)
            self.scarce.push(task)
        elif task.state is TaskState.WAITING:
            self._strand(task)

    def _serve_lines(self) -> None:
        """Give out what is free of resources and of other pools' threads, by priority; others take their turn."""
        changed, self.scarce.changed = self.scarce.changed, {}
        heads = [(head, shape) for shape in changed if (head := shape.queue.peek()) is not None]
        heapify(heads)
        while heads:
            task, shape = heads[0]
            first = self.queue.peek() if self.queue.size else None
            if first is not None and first.priority[0] < task.priority[0]:
                roomy = self.open.best(self._expected(first))
                if roomy is not None:
                    self._assign(first, roomy)
                    continue
            worker = placement.soonest(self, task, self.scarce.candidates(task, shape))
            if worker is not None:
                self._assign(task, worker)
                following = shape.queue.peek()
                if following is not None:
                    heapreplace(heads, (following, shape))
                    continue
            heappop(heads)

    def note_room(self, worker: WorkerRecord) -> None:
        """``worker`` has less to do than before, or something there is free again."""
        self.open.note(worker)
        self.scarce.note(worker)

    def _strand(self, task: Task) -> None:
        """No worker may run ``task`` now."""
        self._advance(task, TaskEvent.STRAND)
        self.stranded.add(task, self.now)

    def _drain_queue(self) -> None:
        while self.queue.size:
            task = self.queue.peek()
            assert task is not None, "the queue's size disagrees with its entries"
            worker = self.open.best(self._expected(task))
            if worker is None:
                return
            self._assign(task, worker)

    def _assign_ahead(self, task: Task) -> None:
        """Give ``task`` to the worker that is to run all inputs that it lacks, where that costs no parallelism."""
        worker = placement.ahead(self, task)
        if worker is None:
            return
        if worker.n_ahead < AHEAD_MOST:
            self._assign(task, worker)
        elif worker.postponed is None:
            worker.postponed = [task]
        else:
            worker.postponed.append(task)

    def _catch_up(self, task: Task) -> None:
        """The last input of ``task``, which was assigned ahead of time, is there: it counts as work now."""
        worker = task.worker
        assert worker is not None
        worker.n_ahead -= 1
        task.estimate = self._expected(task)
        worker.occupancy += task.estimate
        if worker.postponed is not None and worker.n_ahead <= AHEAD_MOST // 2:
            self._hopeful += worker.postponed
            worker.postponed = None

    def secede(self, task: Task) -> None:
        """``task`` runs outside of its worker's pool: it is no work any more that others would have to wait for."""
        worker = task.worker
        assert worker is not None
        if not task.long_running:
            task.long_running = True
            worker.n_long_running += 1
            if task.shape is not None:
                Claims.leave_thread(worker, task.shape)
            worker.occupancy -= task.estimate
            task.estimate = 0.0
            self.note_room(worker)

    def _expected(self, task: Task) -> float:
        """Seconds that ``task`` is expected to take."""
        duration = task.group.prefix.duration
        return self.settings.unknown_duration if duration is None else max(duration, 1e-4)

    def _assign(self, task: Task, worker: WorkerRecord) -> None:
        self._advance(task, TaskEvent.ASSIGN)
        task.worker = worker
        self.attempts += 1
        task.attempt = self.attempts
        worker.processing[task] = None
        if task.shape is not None:
            Claims.take(worker, task.shape)
        if task.n_waiting:
            task.estimate = 0.0
            worker.n_ahead += 1
        elif task.shape is not None and task.shape.executor:
            task.estimate = 0.0  # the pool of threads has no more to do than before
        else:
            task.estimate = self._expected(task)
            worker.occupancy += task.estimate
            if worker.n_runnable > worker.nthreads:
                self.crowded[worker] = None
        if task.dependents and len(task.dependents) == 1:
            self._hopeful += task.dependents
        deps = (
            [Dep(d.key, d.nbytes, [w.id for w in d.who_has or ()], d.edition) for d in task.deps] if task.deps else []
        )
        options = task.options
        item = ComputeTask(
            task.key,
            task.attempt,
            task.fn or "",
            task.payload,
            deps,
            task.priority,
            bool(task.who_wants),
            options.resources if options is not None else None,
            task.edition or _set_edition(task),
            options.executor if options is not None else "",
            options.apart if options is not None else None,
        )
        if task.key in worker.out_free:
            self.flush_free(worker)
        out = worker.out
        if out and type(out[-1]) is Compute:
            message = out[-1]
            message.tasks.append(item)
        else:
            message = Compute([item], {}, {})
            self.tell(worker, message)
        if task.fn and task.fn not in worker.functions:
            worker.functions.add(task.fn)
            function = self.functions.get(task.fn)
            message.functions[task.fn] = function.payload if function is not None else None
        for dep in deps:
            self.introduce(worker, dep.holders, message.peers)

    def introduce(self, worker: WorkerRecord, holders: list[str], peers: dict[str, list[str]]) -> None:
        """Put the addresses of peers that ``worker`` was not told of into ``peers``; none for those that are gone."""
        if worker.gone:
            peers.update((peer, []) for peer in worker.gone)
            worker.gone = []
        for holder in holders:
            if holder not in worker.peers:
                worker.peers.add(holder)
                record = self.workers.get(WorkerId(holder))
                if record is not None:
                    peers[holder] = record.addresses

    def _take_back(self, task: Task) -> None:
        """Tell the worker of ``task`` to drop it; count its thread until that is known to be free."""
        worker, seconds = task.worker, task.estimate
        assert worker is not None
        may_run = not task.n_waiting and not task.long_running
        if task.shape is not None and (may_run or task.shape.needs):
            worker.claims[task.attempt] = (task.shape, may_run)
        self._unassign(task, holds=task.attempt in worker.claims)
        self.free(worker, task.key)
        if may_run:
            worker.lingering[task.attempt] = seconds
            worker.occupancy += seconds

    def freed(self, worker: WorkerRecord, attempt: int) -> None:
        """The thread of an assignment that was taken back is free, or was never taken."""
        seconds = worker.lingering.pop(attempt, None)
        claim = worker.claims.pop(attempt, None)
        if claim is not None:
            Claims.give(worker, *claim)
        if seconds is not None:
            busy = worker.processing or worker.lingering
            worker.occupancy = worker.occupancy - seconds if busy else 0.0
        if seconds is not None or claim is not None:
            self.note_room(worker)

    def left_pool(self, worker: WorkerRecord, attempt: int) -> None:
        """What works for an assignment that was taken back goes on outside of the pool, and holds its resources."""
        claim = worker.claims.pop(attempt, None)
        self.freed(worker, attempt)
        if claim is None:
            return
        shape, in_thread = claim
        if not shape.needs:
            Claims.give(worker, shape, in_thread)
        else:
            worker.claims[attempt] = (shape, False)
            if in_thread:
                Claims.leave_thread(worker, shape)
        self.note_room(worker)

    def _unassign(self, task: Task, holds: bool = False) -> None:
        """``task`` is its worker's no more; it ``holds`` what it took until the worker says that it is free."""
        worker = task.worker
        assert worker is not None, task
        task.worker = None
        del worker.processing[task]
        worker.occupancy = worker.occupancy - task.estimate if worker.processing or worker.lingering else 0.0
        worker.n_ahead -= task.n_waiting > 0
        if task.shape is not None and not holds:
            Claims.give(worker, task.shape, not task.long_running)
        worker.n_long_running -= task.long_running
        task.long_running = False
        if task.thief is not None:
            worker.n_stolen -= 1
            self.end_theft(task)
        self.note_room(worker)


def _set_edition(task: Task) -> int:
    """Tell this definition of ``task`` from others of its key."""
    digest = crc32((task.fn or "").encode())
    frames = task.payload.frames if isinstance(task.payload, Blob) else (task.payload,)
    for frame in frames:
        digest = crc32(frame, digest)
    for dep in task.deps:
        digest = crc32(b"%d %s" % (dep.edition, dep.key.encode()), digest)
    task.edition = digest or 1
    return task.edition
