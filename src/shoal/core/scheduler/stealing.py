"""Work stealing: tasks that wait at a loaded worker go to one that has a thread free.

A request names the assignment; the worker answers whether it gave the task up or has begun it. Only then is the task
placed anew, so that it never runs twice. A task is asked for where it would be done sooner at the thief, with the
transfer of its inputs counted, so that a balanced load stands still.
"""

from __future__ import annotations

from itertools import islice
from typing import Final

from shoal.core.scheduler import placement
from shoal.core.scheduler.roster import WorkerRecord
from shoal.core.scheduler.state import SchedulerState
from shoal.core.scheduler.task import Task
from shoal.ids import WorkerId
from shoal.messages import Steal, StealAnswer

#: Seconds between two looks at the balance.
INTERVAL: Final = 0.05
#: Seconds that a theft takes at least: a request, an answer, an assignment.
TRIP: Final = 0.002
#: Victims that are looked at for one thief.
VICTIMS: Final = 3
#: Tasks of one victim that are looked at for one thief.
LOOKED_AT: Final = 64


class Balancer:
    """Looks at the balance now and then, while somebody is idle and somebody has more than it can run."""

    def __init__(self, state: SchedulerState) -> None:
        self._state = state
        self._due: float | None = None
        self._last = 0.0

    def deadline(self) -> float | None:
        """When :meth:`step` is to be called."""
        return self._due

    def step(self, now: float) -> None:
        """Ask for tasks where that is due."""
        state = self._state
        if state.queue.size or not state.crowded:
            self._due = None
            return
        if now < self._last + INTERVAL:
            self._due = self._last + INTERVAL
            return
        self._last, self._due = now, None
        state.crowded = {w: None for w in state.crowded if w.running and w.n_runnable > w.nthreads}
        if not state.crowded:
            return
        victims = sorted((w for w in state.crowded if w.load > TRIP), key=lambda w: (w.load, w.id))
        for thief in state.workers.values():
            if not victims:
                return
            if thief.running and thief.n_runnable + thief.n_stealing < thief.nthreads:
                self._steal_for(thief, victims)

    def _steal_for(self, thief: WorkerRecord, victims: list[WorkerRecord]) -> None:
        """Ask for as many tasks as ``thief`` has threads free, of the most loaded; who has no more is taken off."""
        free = thief.nthreads - thief.n_runnable - thief.n_stealing
        for victim in victims[: -VICTIMS - 1 : -1]:
            for task in islice(reversed(victim.processing), LOOKED_AT):
                if free <= 0 or victim.n_runnable - victim.n_stolen <= victim.nthreads:
                    break
                if self._worth_it(task, victim, thief):
                    self._ask(task, victim, thief)
                    free -= 1
            if free <= 0:
                break
        while victims and victims[-1].n_runnable - victims[-1].n_stolen <= victims[-1].nthreads:
            victims.pop()

    def _worth_it(self, task: Task, victim: WorkerRecord, thief: WorkerRecord) -> bool:
        if task.thief is not None or task.n_waiting or task.long_running or task.actor:
            return False
        if not placement.allowed(task, thief) or (task.shape is not None and not task.shape.fits(thief)):
            return False
        transfer = sum(
            placement.TRANSFER_LATENCY + max(dep.nbytes, 0) / self._state.bandwidth
            for dep in task.deps
            if thief not in (dep.who_has or ())
        )
        return thief.load + TRIP + transfer + task.estimate < victim.load

    def _ask(self, task: Task, victim: WorkerRecord, thief: WorkerRecord) -> None:
        task.thief = thief
        thief.n_stealing += 1
        victim.n_stolen += 1
        self._state.tell(victim, Steal(task.key, task.attempt))

    def answered(self, worker: WorkerRecord, answer: StealAnswer) -> None:
        """The victim gave the task up, or kept it."""
        state = self._state
        task = state.tasks.get(answer.key)
        if task is None or task.worker is not worker or task.attempt != answer.attempt or task.thief is None:
            if answer.granted:
                state.freed(worker, answer.attempt)
            return  # it was released, finished or reassigned since: nothing is out any more
        thief = task.thief
        if not answer.granted:
            worker.n_stolen -= 1
            state.end_theft(task)
        else:
            state.give_back(task)
            if WorkerId(thief.id) in state.workers:
                task.thief = thief
                thief.n_stealing += 1
