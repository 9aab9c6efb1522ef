"""Graceful retirement: the one way in which a live worker leaves, whoever asks for it.

1. The worker takes no more tasks, and its slot no other worker. Its nanny is told not to start another, and says so.
2. The worker gives back what no thread has, takes no more data, and says so. What its threads are in is let finish.
3. Each key that no worker has which stays is copied to one that does: the most precious first, to the emptiest.
4. When nothing is left that only it holds, it is removed in one step, and told to end (or to stay idle for good).

Where nobody can have a key, the worker goes back to work, and whoever asked is told why. A worker that dies meanwhile
is a death as any other; its slot stays closed.
"""

from __future__ import annotations

from collections import deque
from heapq import heapify, heappop, heappush
from typing import Any, Final

from shoal.core.effects import INFO, WARNING
from shoal.core.scheduler import info, scaling
from shoal.core.scheduler.copying import TRIES, Failure
from shoal.core.scheduler.roster import NannyRecord, WorkerRecord, WorkerState
from shoal.core.scheduler.settings import Settings
from shoal.core.scheduler.supervision import Supervision
from shoal.core.scheduler.task import Task, TaskState
from shoal.errors import UsageError
from shoal.ids import ClientId, SlotId, WorkerId
from shoal.messages import AskRetirement, Close, Leave, RestartWorker, Retire, Retired

#: Keys that are looked at, and copies that are begun, in one turn for one worker.
_A_TURN: Final = 10_000
#: Tasks that are looked at to learn what a key costs.
_ANCESTORS: Final = 200
#: Keys that are named where some are lost or stay.
_NAMED: Final = 5
#: Slots that are remembered after they were left.
_REMEMBERED: Final = 100_000
#: Seconds that a worker may take to say that it heard of its retirement, where silence has no limit.
_DEAF: Final = 300.0


class Departure:
    """A worker that is to go: on whose behalf, what is left to be copied, and what was."""

    __slots__ = (
        "began", "broken", "callers", "close", "flushed", "flying", "force", "heard", "line", "moved",
        "moved_nbytes", "nanny_asked", "nanny_heard", "nanny_number", "number", "patience", "rank", "reason",
        "refused", "remove", "restart", "scan", "stuck", "todo", "worker",
    )  # fmt: skip

    def __init__(self, worker: WorkerRecord, reason: str, now: float) -> None:
        self.worker, self.reason, self.began = worker, reason, now
        self.close = self.remove = self.force = False
        self.restart = True
        #: Until when running tasks are waited for.
        self.patience: float | None = None
        self.callers: list[PendingRetirement] = []
        #: The orders to leave that the worker and its nanny were given last, and whether they said that they heard.
        self.number = self.nanny_number = 0
        self.heard = self.nanny_heard = False
        self.nanny_asked = now
        #: What it holds and nobody has looked at, the most precious last.
        self.scan: list[Task] = []
        #: Keys that no worker holds which stays, and those of them that nobody was asked to copy, in order.
        self.todo: dict[Task, None] = {}
        self.line: deque[Task] = deque()
        self.rank: dict[Any, int] = {}
        #: Keys that somebody was asked to copy.
        self.flying: dict[Task, None] = {}
        #: Why workers did not bring keys that they were asked for, and how often.
        self.refused: dict[Task, dict[WorkerRecord, tuple[int, str]]] = {}
        #: Why a key can never be copied.
        self.broken = ""
        self.stuck: float | None = None
        self.moved = self.moved_nbytes = 0
        #: Whether all is elsewhere, and the worker is to stay where it is.
        self.flushed = False

    @property
    def endangered_nbytes(self) -> int:
        return sum(max(task.nbytes, 0) for task in self.todo)

    def __repr__(self) -> str:
        return f"<Departure of {self.worker.name}: {len(self.todo)} keys left, {self.moved} moved>"


class PendingRetirement:
    """What one caller asked for: answered when each worker has left, died or stays."""

    __slots__ = ("client", "kept", "lost", "retired", "rid", "waiting")

    def __init__(self, client: ClientId, rid: int) -> None:
        self.client, self.rid = client, rid
        self.waiting: dict[WorkerRecord, None] = {}
        self.retired: dict[str, Any] = {}
        self.kept: dict[str, str] = {}
        self.lost: dict[str, str] = {}


class Departures(Supervision):
    """Workers retire."""

    def __init__(self, id: str, settings: Settings | None = None) -> None:
        super().__init__(id, settings)
        self.departures: dict[WorkerRecord, Departure] = {}
        self._number = 0
        #: Whether there is more to do than was done in this turn.
        self._more = False
        #: Whether copies may be begun that could not be before, and how many moves were over when that was tried last.
        self._may_begin = False
        self._ended = 0

    # -------------------------------------------------------------------------------------------- beginning

    def _on_retire(self, client: ClientId, message: Retire) -> None:
        """A client (or this program itself) wants workers to go."""
        state = self.state
        pending = PendingRetirement(client, message.rid)
        names = message.workers
        if names is None:
            try:
                names = [str(worker.id) for worker in scaling.to_close(self, **message.criteria)]
            except (TypeError, UsageError) as error:
                self._answer(client, message.rid, None, f"{type(error).__name__}: {error}")
                return
        reason = message.reason or "a client retired it"
        patience = None if message.patience is None else state.now + message.patience
        for name in names:
            found = [worker for worker in state.workers.values() if worker.answers_to(name)]
            for worker in found:
                departure = self._depart(worker, reason)
                departure.close |= message.close
                departure.remove |= message.remove
                departure.force |= message.force
                departure.patience = _sooner(departure.patience, patience)
                self._for_good(departure)
                if worker not in pending.waiting:
                    pending.waiting[worker] = None
                    departure.callers.append(pending)
            if not found:
                self._close_empty(name, reason)
        self._answer_retirement(pending)

    def _close_empty(self, name: str, reason: str) -> None:
        """A slot whose worker is not there yet, or is between two lives, is left before one comes."""
        for nanny in tuple(self.state.nannies.values()):
            if name in (nanny.name, nanny.id, nanny.address, nanny.host) and nanny.id not in self.state.by_slot:
                self._leave_slot(nanny.id, reason)
                self._say(nanny.id, Close(reason))

    def _on_ask_retirement(self, worker: WorkerRecord, message: AskRetirement) -> None:
        """A worker, or its nanny, says that it has to go."""
        departure = self._depart(worker, message.reason)
        if message.patience is not None:
            departure.patience = _sooner(departure.patience, self.state.now + message.patience)
        departure.close = departure.remove = True
        if not message.restart:
            self._for_good(departure)

    def _depart(self, worker: WorkerRecord, reason: str) -> Departure:
        """``worker`` is to go; whoever asks again joins those who asked before."""
        known = self.departures.get(worker)
        if known is not None:
            known.flushed = False
            return known
        state = self.state
        departure = self.departures[worker] = Departure(worker, reason, state.now)
        state.retire(worker)
        self.copying.watch()
        departure.scan = self._by_worth(departure)
        self._number += 1
        departure.number = self._number
        departure.nanny_heard = True
        state.tell(worker, Leave(self._number, True, reason))
        self._log(INFO, f"worker {worker.name} ({worker.address}) is to leave: {reason}")
        self._tell_of_worker(worker, "retiring", {"reason": reason, "keys": len(worker.has_what)})
        self._notify("retire", worker.address, reason)
        return departure

    def _for_good(self, departure: Departure) -> None:
        """No other worker is to take its place: its nanny has to know before data is moved."""
        if not departure.restart:
            return
        departure.restart = False
        nanny = self.state.nannies.get(departure.worker.slot)
        if nanny is not None:
            self._number += 1
            departure.nanny_number, departure.nanny_heard = self._number, False
            departure.nanny_asked = self.state.now
            self._say(nanny.id, Leave(self._number, True, departure.reason))

    def _by_worth(self, departure: Departure) -> list[Task]:
        """What the worker holds, the most precious last: scattered data, then what is costliest to compute."""
        kinds: dict[Any, list[Task]] = {}
        for task in departure.worker.has_what:
            kinds.setdefault(None if task.fn is None else task.group.prefix, []).append(task)
        order = sorted(kinds, key=lambda kind: (kind is not None, 0.0 if kind is None else -_cost(kinds[kind][0])))
        departure.rank = {kind: rank for rank, kind in enumerate(order)}
        return [task for kind in reversed(order) for task in reversed(kinds[kind])]

    def _on_leaving(self, peer: str, number: int) -> None:
        """A worker or a nanny heard that the worker is to go."""
        worker = self.state.workers.get(WorkerId(peer)) or self.state.by_slot.get(SlotId(peer))
        departure = self.departures.get(worker) if worker is not None else None
        if departure is not None:
            departure.heard |= departure.number == number
            departure.nanny_heard |= departure.nanny_number == number
            self._may_begin = True

    # -------------------------------------------------------------------------------------------- the turn

    def _check_paused(self, now: float) -> None:
        """Replace workers that have taken no tasks for too long, where there is a nanny to start others."""
        timeout = self.settings.paused_timeout
        for worker, since in tuple(self.paused.items()):
            if timeout is None or now < since + timeout:
                continue
            self.paused[worker] = now  # it is thought over again, should it stay
            if worker.stays and worker.slot in self.state.nannies:
                departure = self._depart(worker, f"it has taken no tasks for {now - since:.0f} s")
                departure.close = departure.remove = True

    def _step_departures(self, failures: list[Failure], touched: list[Task], now: float) -> None:
        """Take notice of what was copied and what was not, begin more, and let those go that may."""
        if not self.departures:
            return
        for failure in failures:
            self._on_failure(failure)
        for task in touched:
            self._look_at(task)
        for departure in tuple(self.departures.values()):
            self._scan(departure)
        if self._may_begin or self._more or self.copying.ended != self._ended:
            self._may_begin, self._ended = False, self.copying.ended
            self._begin_copies()
        stuck = [d for d in tuple(self.departures.values()) if self._advance(d, now)]
        if stuck:
            # One that stays may take what the others hold: the one that has most to give away.
            last = max(stuck, key=lambda d: (d.endangered_nbytes, len(d.todo), d.worker.id))
            self._keep(last, last.broken or self._why_stuck(last))
            self._more = self._may_begin = True

    def _on_failure(self, failure: Failure) -> None:
        for departure in self.departures.values():
            if failure.task in departure.flying or failure.task in departure.todo:
                departure.flying.pop(failure.task, None)
                if failure.blame:
                    refused = departure.refused.setdefault(failure.task, {})
                    refused[failure.target] = (refused.get(failure.target, (0, ""))[0] + 1, failure.reason)
                departure.line.appendleft(failure.task)
                self._may_begin = True
                if failure.broken:
                    departure.broken = f"{failure.task.key!r} cannot be moved: {failure.reason}"

    def _look_at(self, task: Task) -> None:
        """Other workers hold ``task`` than before."""
        holders = task.who_has or {}
        safe = any(worker.stays for worker in holders)
        for departure in self.departures.values():
            if safe or departure.worker not in holders:
                if task in departure.todo:
                    del departure.todo[task]
                    was_asked_for = departure.flying.pop(task, True) is None
                    if safe and was_asked_for:
                        departure.moved += 1
                        departure.moved_nbytes += max(task.nbytes, 0)
                        if task.fn is not None:  # what nobody can compute again is kept for as long as may be
                            self.state.drop_copy(task, departure.worker)
            elif task not in departure.todo:
                departure.todo[task] = None
                departure.line.append(task)
                self._may_begin = True

    def _scan(self, departure: Departure) -> None:
        """Look at what a worker that is to go held from the start."""
        scan = departure.scan
        for _ in range(min(len(scan), _A_TURN)):
            task = scan.pop()
            holders = task.who_has or ()
            if departure.worker in holders and task not in departure.todo and not any(w.stays for w in holders):
                departure.todo[task] = None
                departure.line.append(task)
                self._may_begin = True
        self._more |= bool(scan)

    def _begin_copies(self) -> None:
        """Ask workers for copies of what would go, as many as they may be asked for now."""
        movers = [d for d in self.departures.values() if d.line and d.nanny_heard and not d.flushed]
        if not movers:
            return
        copying = self.copying
        workers = self.state.workers.values()
        targets = [(copying.projected(w), w.id, w) for w in workers if w.running and copying.has_window(w)]
        heapify(targets)
        left = _A_TURN
        for departure in movers:
            line = departure.line
            while line and left:
                task = line[0]
                if task.actor and task in departure.todo:
                    departure.broken = f"it runs the actor {task.key!r}, which cannot be moved"
                elif task in departure.todo and task not in copying.moves:
                    target = self._pick(targets, task, departure)
                    if target is not None:
                        rank = departure.rank.get(None if task.fn is None else task.group.prefix, 0)
                        copying.begin(task, target, rank)
                        if copying.has_window(target):
                            heappush(targets, (copying.projected(target), target.id, target))
                        left -= 1
                    elif not departure.force or self._may_be_had(task, departure):
                        break
                if task in copying.moves:
                    departure.flying[task] = None
                line.popleft()
        if not left:
            self._more = self._may_begin = True

    def _pick(self, targets: list[Any], task: Task, departure: Departure) -> WorkerRecord | None:
        """Take the emptiest worker that may have a copy of ``task`` off the heap."""
        refused = departure.refused.get(task, ())
        passed_over = []
        found: Any = None
        while targets:
            entry = heappop(targets)
            if entry[2] not in refused and self._may_have(entry[2], task, departure):
                found = entry
                break
            passed_over.append(entry)
        if found is None:  # one that did not bring it before, then
            found = next((entry for entry in passed_over if self._may_have(entry[2], task, departure)), None)
        for entry in passed_over:
            if entry is not found:
                heappush(targets, entry)
        return None if found is None else found[2]

    def _may_have(self, worker: WorkerRecord, task: Task, departure: Departure) -> bool:
        refused = departure.refused.get(task)
        return (
            worker not in (task.who_has or ())
            and (refused is None or refused.get(worker, (0, ""))[0] < TRIES)
            and self.copying.has_room(worker, max(task.nbytes, 0))
        )

    def _may_be_had(self, task: Task, departure: Departure) -> bool:
        """Whether some worker that takes tasks may have a copy, now or once it has got what it was asked for."""
        return any(w.running and self._may_have(w, task, departure) for w in self.state.workers.values())

    def _advance(self, departure: Departure, now: float) -> bool:
        """Let the worker go if nothing keeps it; return whether something keeps it for good."""
        if departure.flushed:
            return False
        if departure.broken and not departure.force:
            return True
        if not departure.nanny_heard and now >= departure.nanny_asked + self.settings.move_timeout:
            departure.broken = f"its nanny has not answered for {self.settings.move_timeout:g} s"
            return True
        if not departure.heard:
            if now < departure.began + (self.settings.worker_ttl or _DEAF):
                return False
            if not departure.force:
                departure.broken = f"it has not answered for {now - departure.began:.0f} s"
                return True
            departure.heard = True
        worker = departure.worker
        if worker.processing and self._may_not_wait(departure, now):
            for task in tuple(worker.processing):
                if task.worker is worker:
                    self.state.give_back(task, lingers=True)
        if not departure.nanny_heard or departure.scan:
            return False
        if departure.todo:
            if any(task in self.copying.moves for task in departure.flying):
                departure.stuck = None
                return False
            if not self._is_stuck(departure, now):
                return False
            if not departure.force:
                return True
        if not worker.processing:
            self._finish(departure)
        return False

    def _may_not_wait(self, departure: Departure, now: float) -> bool:
        """Whether what runs on the worker is to run elsewhere."""
        if departure.patience is not None and now >= departure.patience:
            return True
        # What left the pool waits for other tasks, as a rule; where nobody runs any, it would wait for ever.
        waits_for_others = departure.worker.n_long_running == len(departure.worker.processing)
        stranded = waits_for_others and not self.state.running_nthreads and len(self.state.stranded)
        return bool(stranded) and now >= departure.began + self.settings.move_timeout

    def _is_stuck(self, departure: Departure, now: float) -> bool:
        """Whether nobody can have what is left, and nobody is about to be able to."""
        if departure.force:
            return not departure.line
        if not departure.line:
            departure.line.extend(departure.todo)
        task = departure.line[0]
        workers = self.state.workers.values()
        if self._may_be_had(task, departure):
            self._more |= any(w.running and self.copying.has_window(w) for w in workers)
            self._may_begin |= self._more
            departure.stuck = None
            return False
        if not any(w.state is WorkerState.PAUSED and self._may_have(w, task, departure) for w in workers):
            return True
        departure.stuck = now if departure.stuck is None else departure.stuck
        return now >= departure.stuck + self.settings.move_timeout

    def _why_stuck(self, departure: Departure) -> str:
        keys = list(departure.todo)
        worst = max(keys, key=lambda task: task.nbytes)
        others = [w for w in self.state.workers.values() if w is not departure.worker]
        running = [w for w in others if w.running]
        if not others:
            why = "there is no other worker"
        elif not running:
            why = "no other worker takes data: " + ", ".join(f"{w.name} is {w.state.label}" for w in others[:_NAMED])
        elif departure.line and departure.refused.get(departure.line[0]):
            why = next(iter(departure.refused[departure.line[0]].values()))[1]
        else:
            why = f"none of {len(running)} workers has room for {worst.nbytes:,} bytes (shoal.scheduler.fill)"
        return f"it holds the only copy of {_names(keys)}, and {why}"

    def departures_due(self) -> float | None:
        """When something is to be decided even if nothing happens."""
        due: list[float] = []
        if self.paused and self.settings.paused_timeout is not None:
            due.append(min(self.paused.values()) + self.settings.paused_timeout)
        for departure in self.departures.values():
            if departure.flushed:
                continue
            if departure.patience is not None and departure.heard and departure.worker.processing:
                due.append(departure.patience)
            if departure.heard and departure.worker.n_long_running and not self.state.running_nthreads:
                due.append(max(departure.began + self.settings.move_timeout, self.state.now + 1.0))
            if not departure.nanny_heard:
                due.append(departure.nanny_asked + self.settings.move_timeout)
            if not departure.heard:
                due.append(departure.began + (self.settings.worker_ttl or _DEAF))
            if departure.stuck is not None:
                due.append(departure.stuck + self.settings.move_timeout)
        return min(due, default=None)

    # -------------------------------------------------------------------------------------------- ending

    def _finish(self, departure: Departure) -> None:
        """All that only this worker held is elsewhere (or lost by force): it goes."""
        worker, reason = departure.worker, departure.reason
        lost = [task.key for task in departure.todo]
        by = "client" if departure.callers else "worker"
        told = {
            "by": by, "reason": reason, "keys_moved": departure.moved, "bytes_moved": departure.moved_nbytes,
            "seconds": self.state.now - departure.began, "lost": lost, "closed": departure.close,
        }  # fmt: skip
        self._tell_of_worker(worker, "retired", told)
        self._log(
            WARNING if lost else INFO,
            f"worker {worker.name} ({worker.address}) retires: {reason}; {departure.moved} keys "
            f"({departure.moved_nbytes:,} bytes) were moved in {told['seconds']:.2f} s"
            + (f"; lost, since it was forced: {_names(list(departure.todo))}" if lost else ""),
        )
        identity = {**info.worker_identity(self, worker), **told}
        for caller in departure.callers:
            caller.retired[worker.address] = identity
        if not (departure.close or departure.remove):
            departure.flushed = True
            self._end_callers(departure)
            return
        nanny = self.state.nannies.get(worker.slot)
        ends_itself = departure.close and nanny is None
        self._say(worker.id, Retired(reason, ends_itself))
        if not ends_itself:  # its nanny ends it, or whoever asked does
            self.retired[worker.id] = reason
        if not departure.restart or nanny is None:
            self._leave_slot(worker.slot, reason)
        if nanny is not None:
            nanny.parted = worker.id
            if departure.restart:
                self._say(nanny.id, RestartWorker(0, f"was retired: {reason}", 30.0, False, worker.id))
            elif departure.close:
                self._say(nanny.id, Close(reason))
        self._remove_worker(worker, reason, expected=True, safe=not lost, by=by)

    def _keep(self, departure: Departure, why: str) -> None:
        """The worker goes back to work."""
        worker = departure.worker
        del self.departures[worker]
        self.state.keep(worker)
        assert self.state.touched is not None
        self.state.touched.update(dict.fromkeys(worker.has_what))  # what others hold, too, is safe now
        self._number += 1
        self.state.tell(worker, Leave(self._number, False))
        nanny = self.state.nannies.get(worker.slot)
        if nanny is not None and not departure.restart:
            self._say(nanny.id, Leave(self._number, False))
        self._log(WARNING, f"worker {worker.name} ({worker.address}) cannot retire and stays: {why}")
        self._tell_of_worker(worker, "could-not-retire", {"reason": departure.reason, "why": why})
        for caller in departure.callers:
            caller.kept[worker.address] = why
        self._end_callers(departure)

    def _remove_worker(
        self,
        worker: WorkerRecord,
        reason: str,
        expected: bool,
        running: list[str] | None = None,
        safe: bool = False,
        by: str = "",
    ) -> None:
        super()._remove_worker(worker, reason, expected, running, safe, by)
        departure = self.departures.pop(worker, None)
        if departure is None:
            return
        for caller in departure.callers:
            if worker.address not in caller.retired:
                caller.lost[worker.address] = reason
        if not departure.restart and worker.slot not in self.left:  # it died on the way
            self._leave_slot(worker.slot, departure.reason)
            if worker.slot in self.state.nannies:
                self._say(worker.slot, Close(departure.reason))
        self._end_callers(departure)

    def _remove_nanny(self, nanny: NannyRecord, reason: str) -> None:
        super()._remove_nanny(nanny, reason)
        worker = self.state.by_slot.get(nanny.id)
        departure = self.departures.get(worker) if worker is not None else None
        if departure is not None:
            self._may_begin = True
            departure.nanny_heard = True  # nobody is there who could start another worker

    def _leave_slot(self, slot: SlotId, reason: str) -> None:
        """No worker may register there again."""
        self.left[slot] = reason
        if len(self.left) > _REMEMBERED:
            del self.left[next(iter(self.left))]

    def _end_callers(self, departure: Departure) -> None:
        callers, departure.callers = departure.callers, []
        for pending in callers:
            pending.waiting.pop(departure.worker, None)
            self._answer_retirement(pending)

    def _answer_retirement(self, pending: PendingRetirement) -> None:
        if pending.waiting:
            return
        told = {"retired": pending.retired, "kept": pending.kept, "lost": pending.lost}
        self.topics.log(
            "all", {"action": "retire-workers", "retired": list(pending.retired), "could-not-retire": pending.kept}
        )
        self._answer(pending.client, pending.rid, told)


def _cost(task: Task) -> float:
    """Seconds that it is expected to take to compute ``task``, with those inputs that would have to be made first."""
    seconds = 0.0
    stack, seen = [task], {task}
    while stack and len(seen) < _ANCESTORS:
        t = stack.pop()
        seconds += t.group.prefix.duration or 0.0
        for dep in t.deps:
            if dep.state is not TaskState.MEMORY and dep not in seen:
                seen.add(dep)
                stack.append(dep)
    return seconds


def _names(tasks: list[Task]) -> str:
    more = f" and {len(tasks) - _NAMED} more" if len(tasks) > _NAMED else ""
    return ", ".join(repr(task.key) for task in tasks[:_NAMED]) + more


def _sooner(one: float | None, other: float | None) -> float | None:
    if one is None or other is None:
        return other if one is None else one
    return min(one, other)
