"""Giving tasks to workers: at once, when one has room, or ahead of their inputs."""

from __future__ import annotations

from typing import Final
from zlib import crc32

from shoal.core.scheduler import placement
from shoal.core.scheduler.roster import (
    WorkerRecord,
)
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
    """How a task that is ready gets to a worker."""

    def end_theft(self, task: Task) -> None:
        """``task`` is asked of nobody any more, and waits for no thief."""
        if task.thief is not None:
            task.thief.n_stealing -= 1
            task.thief = None

    def _place(self, task: Task) -> None:
        thief = task.thief
        if thief is not None:
            self.end_theft(task)
            if thief.running and placement.allowed(task, thief):
                self._assign(task, thief)
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

    def _strand(self, task: Task) -> None:
        """No worker may run ``task`` now."""
        self._advance(task, TaskEvent.STRAND)
        self.stranded.add(task, self.now)

    def _drain_queue(self) -> None:
        while self.queue.size:
            worker = self.open.best()
            if worker is None:
                return
            task = self.queue.peek()
            assert task is not None, "the queue's size disagrees with its entries"
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
            worker.n_needy -= task.needy
            worker.occupancy -= task.estimate
            task.estimate = 0.0
            self.open.note(worker)

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
        worker.n_needy += task.needy
        if task.n_waiting:
            task.estimate = 0.0
            worker.n_ahead += 1
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
        """Put the addresses of peers that ``worker`` was not told of into ``peers``."""
        for holder in holders:
            if holder not in worker.peers:
                worker.peers.add(holder)
                record = self.workers.get(WorkerId(holder))
                if record is not None:
                    peers[holder] = record.addresses


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
