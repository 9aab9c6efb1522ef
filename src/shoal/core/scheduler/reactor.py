"""Where messages meet the scheduler's state: one method for each, read it as a list of answers.

:class:`SchedulerCore` is driven with ``handle(events, now) -> effects``; ``deadline()`` says when it wants to be
called at the latest. Messages of peers that are not in the tables (removed, superseded, never registered) change
nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, assert_never

from shoal.core.effects import ERROR, INFO, WARNING, CallUser, CloseLink, Effect, Log, Send, Stop
from shoal.core.events import CallDone, Due, Event, LinkLost, LinkOpened, Received
from shoal.core.scheduler import explain, info
from shoal.core.scheduler.calls import PendingCalls, PendingRestart
from shoal.core.scheduler.invariants import check
from shoal.core.scheduler.roster import ClientRecord, FunctionRecord, NannyRecord, WorkerRecord
from shoal.core.scheduler.settings import Settings
from shoal.core.scheduler.state import SchedulerState
from shoal.core.scheduler.stealing import Balancer
from shoal.core.scheduler.task import Task, TaskState
from shoal.errors import ShoalError
from shoal.ids import ClientId, SlotId, WorkerId
from shoal.messages import (
    AddKeys,
    Answer,
    Bye,
    Call,
    Cancel,
    ClientRegistered,
    Close,
    DataPut,
    DropFunctions,
    Failed,
    Finished,
    FromClient,
    FromNanny,
    FromWorker,
    Heartbeat,
    Holders,
    KeysCancelled,
    LongRunning,
    Missing,
    NannyRegistered,
    Query,
    RegisterClient,
    RegisterNanny,
    RegisterWorker,
    Rescheduled,
    Restart,
    RestartWorker,
    Retry,
    RunFunction,
    Shutdown,
    StealAnswer,
    Submit,
    Unwant,
    Want,
    WorkerDied,
    WorkerGaveUp,
    WorkerRegistered,
    WorkerRejected,
)

#: A copy whose holder could not be reached this often by those who need it is given up.
UNREACHABLE_LIMIT = 5


class SchedulerCore:
    """All decisions of the scheduler.

    Parameters
    ----------
    id
        Unique id of this scheduler process.
    settings
        The configuration, as plain values.
    """

    def __init__(self, id: str, settings: Settings | None = None) -> None:
        self.id = id
        self.settings = settings or Settings()
        self.state = SchedulerState(self.settings)
        self.balancer = Balancer(self.state)
        self.calls = PendingCalls()
        self.restarts: list[PendingRestart] = []
        self.started = 0.0
        self._effects: list[Effect] = []
        self._ttl_check: float | None = None
        self._roles: dict[str, str] = {}
        self._unreachable: dict[tuple[str, str], int] = {}

    # -------------------------------------------------------------------------------------------- driving

    def handle(self, events: Sequence[Event], now: float) -> list[Effect]:
        """Take what happened; return what is to be done, in order."""
        state = self.state
        state.now = now
        if not self.started:
            self.started = now
        effects = self._effects = []
        for event in events:
            if type(event) is Received:
                self._on_received(event)
            elif type(event) is LinkOpened:
                self._roles[event.peer] = event.role
            elif type(event) is LinkLost:
                self._on_link_lost(event)
            elif type(event) is CallDone:
                self._say(event.to, Answer(event.rid, event.payload))
            elif type(event) is not Due:
                raise TypeError(f"not an event of the scheduler's: {event!r}")
        self._check_ttl(now)
        self._check_restarts(now)
        state.settle()
        self.balancer.step(now)
        state.flush(effects)
        if self.settings.validate:
            check(state)
        return effects

    def deadline(self) -> float | None:
        """When :meth:`handle` is to be called even if nothing happens."""
        due = [restart.deadline for restart in self.restarts]
        due += [at for at in (self._ttl_check, self.balancer.deadline()) if at is not None]
        return min(due, default=None)

    def _on_received(self, event: Received) -> None:
        role = self._roles.get(event.peer)
        state = self.state
        if role == "worker":
            worker = state.workers.get(WorkerId(event.peer))
            state.stimulus = f"worker:{event.peer}"
            if worker is not None:
                worker.last_seen = state.now
            for message in event.messages:
                self._on_worker_message(event.peer, message)
        elif role == "client":
            state.stimulus = f"client:{event.peer}"
            for message in event.messages:
                self._on_client_message(event.peer, message)
        elif role == "nanny":
            state.stimulus = f"nanny:{event.peer}"
            for message in event.messages:
                self._on_nanny_message(event.peer, message)

    def _on_link_lost(self, event: LinkLost) -> None:
        self._roles.pop(event.peer, None)
        self.state.stimulus = f"lost:{event.peer}"
        if event.role == "worker":
            worker = self.state.workers.get(WorkerId(event.peer))
            if worker is not None:
                self._remove_worker(worker, f"its link broke ({event.reason})", expected=False)
        elif event.role == "client":
            client = self.state.clients.get(ClientId(event.peer))
            if client is not None:
                self._remove_client(client)
        elif event.role == "nanny":
            nanny = self.state.nannies.pop(SlotId(event.peer), None)
            if nanny is not None:
                self._answer_calls(self.calls.peer_lost(event.peer, "the nanny is gone"))
                for restart in self.restarts:
                    restart.waiting.pop(nanny.id, None)

    def _say(self, to: str, message: Any) -> None:
        """Send at once, ahead of what :meth:`SchedulerState.flush` gathers; for answers that wait for nothing."""
        if to in self._roles:
            self._effects.append(Send(to, message))

    def _log(self, level: int, text: str) -> None:
        self._effects.append(Log(level, text))

    # -------------------------------------------------------------------------------------------- clients

    def _on_client_message(self, peer: str, message: FromClient) -> None:
        state = self.state
        client = state.clients.get(ClientId(peer))
        if isinstance(message, RegisterClient):
            if client is None:
                client = state.clients[ClientId(peer)] = ClientRecord(ClientId(peer), message.name)
            state.tell(client, ClientRegistered(self.id, {"nthreads": state.total_nthreads}))
            return
        if client is None:
            self._effects.append(CloseLink(peer, "a client must register first"))
            return
        match message:
            case Submit():
                self._on_submit(client, message)
            case Unwant():
                for key in message.keys:
                    if (task := state.tasks.get(key)) is not None:
                        state.unwant(client, task)
            case Want():
                client.wish = message.wish
                self._on_want(client, message.keys)
            case Cancel():
                for key in message.keys:
                    if (task := state.tasks.get(key)) is not None:
                        state.cancel(client, task, message.force, message.reason or "cancelled by a client")
            case Retry():
                for key in message.keys:
                    if (task := state.tasks.get(key)) is not None:
                        state.retry(task)
            case DropFunctions():
                state.drop_functions(client, message.fns)
            case Query():
                self._on_query(client, message)
            case RunFunction():
                self._on_run_function(client, message)
            case Restart():
                self._on_restart(client, message)
            case Shutdown():
                self._on_shutdown(client, message)
            case Bye():
                self._remove_client(client)
            case _:
                assert_never(message)

    def _on_submit(self, client: ClientRecord, message: Submit) -> None:
        state = self.state
        client.wish = message.wish
        for fn, payload in message.functions.items():
            function = state.functions.get(fn)
            if function is None:
                function = state.functions[fn] = FunctionRecord(payload)
            function.clients.add(client.id)
            client.functions.add(fn)
        state.generation += 1
        options, generation = message.options, state.generation
        fresh: list[tuple[Task, list[str]]] = []
        for spec in message.tasks:
            task, new = state.define(spec, options, generation)
            if not new and (text := explain.redefinition(task, spec)):
                self._log(WARNING, text)
            elif new and spec.deps:
                fresh.append((task, spec.deps))
        for task, deps in fresh:
            state.link(task, deps)
        self._on_want(client, message.wants)
        for spec in message.tasks:
            task_or_none = state.tasks.get(spec.key)
            if task_or_none is not None and not task_or_none.needed:
                state.unwant(client, task_or_none)

    def _on_want(self, client: ClientRecord, keys: list[str]) -> None:
        state = self.state
        for key in keys:
            task = state.tasks.get(key)
            if task is not None:
                state.want(client, task)
            else:
                state.tell(client, KeysCancelled([key], f"{key!r} is not known here: it was cancelled or released"))

    def _remove_client(self, client: ClientRecord) -> None:
        state = self.state
        if state.clients.pop(client.id, None) is None:
            return
        for task in tuple(client.wants):
            state.unwant(client, task)
        state.drop_functions(client, list(client.functions))
        client.out.clear()
        self.calls.client_lost(client.id)

    def _on_query(self, client: ClientRecord, message: Query) -> None:
        try:
            value = info.answer(self, message.what, message.args)
        except (ShoalError, TypeError, KeyError) as error:
            state_error = f"{type(error).__name__}: {error}"
            self.state.tell(client, Answer(message.rid, None, state_error))
        else:
            self.state.tell(client, Answer(message.rid, value))

    def _on_run_function(self, client: ClientRecord, message: RunFunction) -> None:
        if message.target == "scheduler":
            self._effects.append(CallUser(message.rid, message.payload, message.wait, client.id))
            return
        targets: list[tuple[str, str]] = []
        state = self.state
        for worker in state.workers.values():
            if message.workers is None or any(worker.answers_to(name) for name in message.workers):
                if message.target == "workers":
                    targets.append((worker.id, worker.address))
                elif worker.slot in state.nannies:
                    targets.append((worker.slot, worker.address))
        if message.workers:
            for name in message.workers:
                if not any(worker.answers_to(name) for worker in state.workers.values()):
                    state.tell(client, Answer(message.rid, None, f"no worker is called {name!r}"))
                    return
        call = self.calls.begin(client.id, message.rid, dict(targets))
        for peer, _ in targets:
            self._say(peer, Call(call.id, message.payload, message.wait))
        self._answer_calls([call])

    def _answer_calls(self, calls: list[Any]) -> None:
        for call in calls:
            if call.complete:
                self.calls.end(call)
                client = self.state.clients.get(call.client)
                if client is not None:
                    self.state.tell(client, Answer(call.rid, {"results": call.results, "errors": call.errors}))

    def _on_restart(self, client: ClientRecord, message: Restart) -> None:
        state = self.state
        for other in state.clients.values():
            keys = [task.key for task in other.wants]
            for task in tuple(other.wants):
                state.unwant(other, task)
            if keys:
                state.tell(other, KeysCancelled(keys, "the cluster was restarted"))
        state.settle()
        restart = PendingRestart(client.id, message.rid, state.now + message.timeout, message.timeout)
        for worker in tuple(state.workers.values()):
            nanny = state.nannies.get(worker.slot)
            if nanny is None:
                self._remove_worker(worker, "the cluster was restarted, and it has no nanny", expected=True)
            else:
                restart.waiting[nanny.id] = worker.id
                self._say(nanny.id, RestartWorker(message.rid, "asked for by a client", message.timeout))
        restart.wait_for_workers = message.wait_for_workers
        self.restarts.append(restart)

    def _check_restarts(self, now: float) -> None:
        for restart in tuple(self.restarts):
            client = self.state.clients.get(restart.client)
            left = [slot for slot, old in restart.waiting.items() if not self._is_replaced(slot, old)]
            if left and restart.wait_for_workers and now < restart.deadline:
                continue
            self.restarts.remove(restart)
            if client is None:
                continue
            if left and restart.wait_for_workers:
                names = ", ".join(self.state.nannies[s].name if s in self.state.nannies else s for s in left)
                text = f"{len(left)} workers did not come back within {restart.timeout:g} s: {names}"
                self.state.tell(client, Answer(restart.rid, None, f"TimeoutError: {text}"))
            else:
                self.state.tell(client, Answer(restart.rid, "OK"))

    def _is_replaced(self, slot: SlotId, old: WorkerId) -> bool:
        nanny = self.state.nannies.get(slot)
        return nanny is None or (
            nanny.worker is not None and nanny.worker != old and nanny.worker in self.state.workers
        )

    def _on_shutdown(self, client: ClientRecord, message: Shutdown) -> None:
        self._say(client.id, Answer(message.rid, "OK"))
        self.close("a client shut the cluster down")

    def close(self, reason: str) -> None:
        """Tell everyone, and end."""
        state = self.state
        for nanny in state.nannies.values():
            self._say(nanny.id, Close(reason))
        for worker in state.workers.values():
            self._say(worker.id, Close(reason))
        for client in state.clients.values():
            self._say(client.id, Bye(reason))
        self._effects.append(Stop(reason))

    def stop(self, reason: str) -> list[Effect]:
        """As :meth:`close`, for the program itself."""
        self._effects = []
        self.close(reason)
        return self._effects

    # -------------------------------------------------------------------------------------------- workers

    def _on_worker_message(self, peer: str, message: FromWorker) -> None:
        state = self.state
        worker = state.workers.get(WorkerId(peer))
        if isinstance(message, RegisterWorker):
            self._on_register_worker(peer, message)
            return
        if worker is None:
            return
        match message:
            case Finished():
                for item in message.items:
                    task = state.tasks.get(item.key)
                    if task is not None and task.worker is worker and task.attempt == item.attempt:
                        state.finish(task, worker, item.nbytes, item.type, item.value, max(item.stop - item.start, 0.0))
            case Failed():
                self._on_failed(worker, message)
            case AddKeys():
                for info_item in message.items:
                    task = state.tasks.get(info_item.key)
                    if task is not None and task.state is TaskState.MEMORY:
                        state.add_replica(task, worker)
                    elif task is None or task.worker is not worker:
                        state.free(worker, info_item.key)
            case Heartbeat():
                worker.metrics = message.metrics
            case Missing():
                self._on_missing(worker, message)
            case DataPut():
                self._on_data_put(worker, message)
            case Rescheduled():
                task = state.tasks.get(message.key)
                if task is not None and task.worker is worker and task.attempt == message.attempt:
                    state.give_back(task)
            case StealAnswer():
                self.balancer.answered(worker, message)
            case LongRunning():
                task = state.tasks.get(message.key)
                if task is not None and task.worker is worker and task.attempt == message.attempt:
                    state.secede(task)
            case Answer():
                self._answer_calls(self.calls.answered(peer, message))
            case Bye():
                self._remove_worker(worker, message.reason or "it closed", expected=True)
            case _:
                assert_never(message)

    def _on_register_worker(self, peer: str, message: RegisterWorker) -> None:
        state = self.state
        if WorkerId(peer) in state.workers:
            return
        before = state.by_slot.get(SlotId(message.slot))
        if before is not None:
            self._remove_worker(before, "another worker process took its place", expected=False)
        namesake = state.by_name.get(message.name)
        if namesake is not None:
            reason = f"a worker named {message.name!r} is here already, at {namesake.address}"
            self._log(WARNING, f"refused worker {peer}: {reason}")
            self._say(peer, WorkerRejected(reason))
            return
        worker = WorkerRecord(
            WorkerId(peer),
            message.name,
            SlotId(message.slot),
            message.addresses,
            message.nthreads,
            self.settings.saturation,
            message.memory_limit,
            message.host,
            message.pid,
            message.local_directory,
            message.resources,
        )
        worker.last_seen = state.now
        state.add_worker(worker)
        nanny = state.nannies.get(worker.slot)
        if nanny is not None:
            nanny.worker = worker.id
        if self.settings.worker_ttl is not None and self._ttl_check is None:
            self._ttl_check = state.now + self.settings.worker_ttl / 4
        self._say(peer, WorkerRegistered(self.id, self.settings.heartbeat_interval))
        self._log(INFO, f"worker {worker.name} joined from {worker.address}, {worker.nthreads} threads")

    def _on_failed(self, worker: WorkerRecord, message: Failed) -> None:
        state = self.state
        task = state.tasks.get(message.key)
        if task is None or task.worker is not worker or task.attempt != message.attempt:
            return
        task.prefix.failures += 1
        if task.retries > 0:
            task.retries -= 1
            state.give_back(task)
            return
        state.fail(task, message.error, task.key)
        state.free(worker, task.key)

    def _on_missing(self, worker: WorkerRecord, message: Missing) -> None:
        state = self.state
        task = state.tasks.get(message.key)
        if task is None:
            state.free(worker, message.key)
            return
        for holder_id in message.absent:
            holder = state.workers.get(WorkerId(holder_id))
            if holder is not None:
                state.lose_replica(task, holder)
                if task.worker is not holder:
                    state.free(holder, task.key)  # so that both agree, whatever it is that it has
        for holder_id in message.unreachable:
            holder = state.workers.get(WorkerId(holder_id))
            if holder is None:
                continue
            count = self._unreachable[(holder_id, task.key)] = self._unreachable.get((holder_id, task.key), 0) + 1
            if count >= UNREACHABLE_LIMIT:
                del self._unreachable[(holder_id, task.key)]
                self._log(WARNING, f"{worker.name} cannot reach {holder.name} for {task.key!r}: that copy is given up")
                state.lose_replica(task, holder)
                state.free(holder, task.key)
        if task.state is TaskState.MEMORY:
            holders = [str(w.id) for w in task.who_has or () if w is not worker]
            peers: dict[str, list[str]] = {}
            state.introduce(worker, holders, peers)
            state.tell(worker, Holders(task.key, list(holders), peers))

    def _on_data_put(self, worker: WorkerRecord, message: DataPut) -> None:
        state = self.state
        client = state.clients.get(ClientId(message.client))
        for item in message.items:
            task = state.tasks.get(item.key)
            if client is None and (task is None or task.state is not TaskState.MEMORY):
                state.free(worker, item.key)
                continue
            if task is None:
                task = state.tasks[item.key] = Task(item.key, state.prefix(item.key))
            if task.state is TaskState.RELEASED or task.state is TaskState.MEMORY:
                state.scatter(task, worker, item.nbytes, item.type)
            if client is not None:
                state.want(client, task)

    def _remove_worker(
        self, worker: WorkerRecord, reason: str, expected: bool, running: list[str] | None = None
    ) -> None:
        state = self.state
        assigned = state.remove_worker(worker)
        has_nanny = worker.slot in state.nannies
        for pair in [pair for pair in self._unreachable if pair[0] == worker.id]:
            del self._unreachable[pair]
        level = INFO if expected else WARNING
        self._log(level, f"worker {worker.name} ({worker.address}) left: {reason}")
        self._answer_calls(self.calls.peer_lost(worker.id, f"worker {worker.name} left: {reason}"))
        self._effects.append(CloseLink(worker.id, reason))
        if running is None and not expected and not has_nanny:
            running = [task.key for task in assigned[: worker.nthreads]]
        if running and not expected:
            self._blame(worker.name, worker.address, reason, running)

    def _blame(self, name: str, address: str, reason: str, running: list[str]) -> None:
        """Count a death against the tasks that were in its threads; give up those that had too many."""
        state = self.state
        for key in running:
            task = state.tasks.get(key)
            if task is None:
                continue
            beside = [other for other in running if other != key]
            line = f"worker {name} ({address}): {reason}"
            if beside:
                line += f"; beside it ran {', '.join(beside[:5])}{' …' if len(beside) > 5 else ''}"
            task.deaths = [*(task.deaths or ()), line]
            if len(task.deaths) > self.settings.allowed_failures and task.active:
                worker = task.worker
                self._log(ERROR, f"task {key!r} is given up: its workers died {len(task.deaths)} times")
                state.fail(task, task.deaths, key)
                if worker is not None:
                    state.free(worker, key)

    def _check_ttl(self, now: float) -> None:
        due, ttl = self._ttl_check, self.settings.worker_ttl
        if due is None or ttl is None or now < due:
            return
        late = now - due
        self._ttl_check = now + ttl / 4 if self.state.workers else None
        if late > ttl / 4:
            # This process was stalled, or the machine was suspended: nobody could be heard. Everyone gets a new lease.
            for worker in self.state.workers.values():
                worker.last_seen = max(worker.last_seen, now - ttl / 2)
            return
        for worker in tuple(self.state.workers.values()):
            silent = now - worker.last_seen
            if silent > ttl:
                nanny = self.state.nannies.get(worker.slot)
                reason = f"it was not heard of for {silent:.0f} s (worker-ttl is {ttl:g} s)"
                if nanny is not None:
                    self._say(nanny.id, RestartWorker(0, reason, 30.0))
                self._remove_worker(worker, reason, expected=False)

    # -------------------------------------------------------------------------------------------- nannies

    def _on_nanny_message(self, peer: str, message: FromNanny) -> None:
        state = self.state
        nanny = state.nannies.get(SlotId(peer))
        if isinstance(message, RegisterNanny):
            state.nannies[SlotId(peer)] = NannyRecord(SlotId(peer), message.name, message.host, message.pid)
            self._say(peer, NannyRegistered(self.id))
            return
        if nanny is None:
            return
        match message:
            case WorkerDied():
                worker = state.workers.get(WorkerId(message.worker))
                if nanny.worker == message.worker:
                    nanny.worker = None
                if worker is not None:
                    self._remove_worker(worker, message.reason, message.expected, message.running)
                elif not message.expected:
                    self._log(WARNING, f"worker {nanny.name} died: {message.reason}")
                    self._blame(nanny.name, message.address or message.worker, message.reason, message.running)
            case WorkerGaveUp():
                self._log(ERROR, f"nanny {nanny.name} gave up: {message.reason}")
            case Answer():
                self._answer_calls(self.calls.answered(peer, message))
            case Bye():
                state.nannies.pop(nanny.id, None)
                self._answer_calls(self.calls.peer_lost(peer, "the nanny closed"))
            case _:
                assert_never(message)
