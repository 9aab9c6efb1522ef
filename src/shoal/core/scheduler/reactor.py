"""Where messages of clients meet the scheduler's state, and where its turn begins and ends.

:class:`SchedulerCore` is driven with ``handle(events, now) -> effects``; ``deadline()`` says when it wants to be
called at the latest. Messages of peers that are not in the tables (removed, superseded, never registered) change
nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

from shoal.core.distrust import Distrust
from shoal.core.effects import WARNING, CallUser, CloseLink, Effect, Notify, Stop
from shoal.core.events import (
    Asked,
    CallDone,
    Due,
    Event,
    LinkDrained,
    LinkFull,
    LinkLost,
    LinkOpened,
    PluginOffered,
    PluginsChanged,
    Received,
)
from shoal.core.scheduler import explain, info
from shoal.core.scheduler.invariants import check
from shoal.core.scheduler.meeting import Meeting
from shoal.core.scheduler.owing import Owing
from shoal.core.scheduler.roster import ClientRecord, FunctionRecord
from shoal.core.scheduler.settings import Settings
from shoal.core.scheduler.task import ACTIVE, Task, TaskState
from shoal.core.splitting import join
from shoal.ids import ClientId, SlotId, WorkerId
from shoal.messages import (
    CANCELLED,
    Answer,
    Bye,
    Call,
    Cancel,
    Carry,
    ClientRegistered,
    Close,
    DropFunctions,
    FireAndForget,
    FromClient,
    KeysCancelled,
    LogEvent,
    ManageMemory,
    Meet,
    Query,
    Rebalance,
    RegisterClient,
    RegisterPlugin,
    Replicate,
    Restart,
    Retire,
    Retry,
    RunFunction,
    Shutdown,
    Submit,
    Subscribe,
    Took,
    Unwant,
    Want,
    Warned,
    Withdraw,
)


class SchedulerCore(Meeting):
    """All decisions of the scheduler.

    Parameters
    ----------
    id
        Unique id of this scheduler process.
    settings
        The configuration, as plain values.
    """

    def __init__(self, id: str, settings: Settings | None = None) -> None:
        super().__init__(id, settings)
        self.owing = Owing(self.state.clients, self.state.tasks, self.state.tell, self.state.bad_news)
        self.started = 0.0
        self._distrust = Distrust()
        #: Since when there has been no work, at which count of transitions, when that is looked at next; why it closes.
        self._idle_since, self._idle_seen = 0.0, -1
        self._idle_check: float | None = None
        self._idle_reason = ""

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
            elif type(event) is PluginOffered:
                self._change_plugin(ClientId(""), event.rid, event.kind, event.name, event.payload)
            elif type(event) is PluginsChanged:
                self._on_plugins_changed(event.hooks)
            elif type(event) is Asked:
                self._on_asked(event.message)
            elif type(event) is LinkFull:
                self.owing.full(event.peer, event.owed, now)
            elif type(event) is LinkDrained:
                self.owing.drained(event.peer)
            elif type(event) is not Due:
                raise TypeError(f"not an event of the scheduler's: {event!r}")
        self._check_ttl(now)
        self._check_restarts(now)
        self._check_stranded(now)
        self._check_paused(now)
        self._check_idle(now)
        state.settle()
        self._step_copies(now)
        self.carrying.step(now)
        self._step_meetings(now)
        state.settle()
        self.owing.step()
        self.balancer.step(now)
        if state.watched:
            effects.append(Notify("transition", tuple(state.watched)))
            state.watched.clear()
        if self.topics.watched:
            effects.append(Notify("log_event", tuple(self.topics.watched)))
            self.topics.watched.clear()
        state.flush(effects)
        self._distrust.look(lambda: check(state))
        if self.settings.validate:
            check(state)
        return effects

    def deadline(self) -> float | None:
        """When :meth:`handle` is to be called even if nothing happens."""
        due = [restart.deadline for restart in self.restarts]
        due += [at for at in (self._ttl_check, self._strand_check(), self.balancer.deadline()) if at is not None]
        due += [
            at
            for at in (
                self.carrying.deadline(),
                self._copies_due(self.state.now),
                self._idle_check,
                self._meetings_due(),
                self.owing.due(self.state.now),
            )
            if at is not None
        ]
        return min(due, default=None)

    def _check_idle(self, now: float) -> None:
        """Close the cluster that has had no work for too long: its workers retire first, whatever they hold."""
        timeout, state = self.settings.idle_timeout, self.state
        if timeout is None:
            return
        if self._idle_reason:
            if not self.departures or now >= self._idle_since + timeout + self.settings.move_timeout:
                self.close(self._idle_reason)
            return
        if self._idle_check is not None and now < self._idle_check:
            return
        active = any(group.states[one] for group in state.groups.values() for one in ACTIVE)
        if active or state.transitions != self._idle_seen or self._idle_check is None:
            self._idle_since, self._idle_seen = now, state.transitions
        self._idle_check = min(now + timeout / 4, self._idle_since + timeout)
        if now < self._idle_since + timeout:
            return
        self._idle_reason = f"the cluster has had no work for {now - self._idle_since:.0f} s (idle-timeout)"
        self._idle_check = now + self.settings.move_timeout
        self._log(WARNING, f"{self._idle_reason}; it closes, and {len(state.tasks)} results are given up with it")
        self.topics.log(["all", "scheduler"], {"action": "idle-timeout", "results": len(state.tasks)})
        for worker in tuple(state.workers.values()):
            departure = self._depart(worker, self._idle_reason)
            departure.close = departure.remove = departure.force = True
            self._for_good(departure)

    def _on_received(self, event: Received) -> None:
        role = self._roles.get(event.peer)
        try:
            self._hear(role, event)
        except Exception as error:  # one peer's message: it costs that peer
            self._effects += self._distrust.caught(role or "peer", event.peer, event.messages, error)
            self._roles.pop(event.peer, None)

    def _hear(self, role: str | None, event: Received) -> None:
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
        self.owing.lost(event.peer)
        self.state.stimulus = f"lost:{event.peer}"
        if event.role == "worker":
            self.retired.pop(WorkerId(event.peer), None)
            worker = self.state.workers.get(WorkerId(event.peer))
            if worker is not None:
                self._remove_worker(worker, f"its link broke ({event.reason})", expected=False)
        elif event.role == "client":
            client = self.state.clients.get(ClientId(event.peer))
            if client is not None:
                self._remove_client(client)
        elif event.role == "nanny":
            nanny = self.state.nannies.get(SlotId(event.peer))
            if nanny is not None:
                self._remove_nanny(nanny, "the nanny is gone")

    # -------------------------------------------------------------------------------------------- clients

    def _on_client_message(self, peer: str, message: FromClient) -> None:
        state = self.state
        client = state.clients.get(ClientId(peer))
        if isinstance(message, RegisterClient):
            if client is None:
                client = state.clients[ClientId(peer)] = ClientRecord(ClientId(peer), message.name)
                self.topics.log(["all", peer], {"action": "add-client", "client": peer})
                self._notify("add_client", peer)
            state.tell(client, ClientRegistered(self.id, {"nthreads": state.total_nthreads}))
            return
        if client is None:
            self._effects.append(CloseLink(peer, "a client must register first"))
            return
        match message:
            case Submit() if message.more:
                client.pieces.append(message)
            case Submit():
                whole = join([*client.pieces, message])
                client.pieces.clear()
                self._on_submit(client, whole)
            case FireAndForget():
                self._on_fire_and_forget(message)
            case Unwant():
                for key in message.keys:
                    if client.owed is not None:
                        client.owed.keys.pop(key, None)
                    if (task := state.tasks.get(key)) is not None:
                        state.unwant(client, task)
            case Want():
                client.wish = message.wish
                self._on_want(client, message.keys)
            case Cancel():
                for key in message.keys:
                    if (task := state.tasks.get(key)) is not None:
                        state.cancel(client, task, message.force, message.reason or CANCELLED)
            case Retry():
                for key in message.keys:
                    if (task := state.tasks.get(key)) is not None:
                        state.retry(task)
                if message.wish:
                    client.wish = message.wish
                    self._on_want(client, message.keys)
            case DropFunctions():
                state.drop_functions(client, message.fns)
            case Carry():
                self.carrying.ask(peer, message)
            case Query():
                self._on_query(client, message)
            case RunFunction():
                self._on_run_function(client, message)
            case Restart():
                self._on_restart(client, message)
            case RegisterPlugin():
                self._on_register_plugin(client, message)
            case Subscribe():
                self.topics.subscribe(client.id, message.topic, message.on)
            case LogEvent():
                self.topics.log(message.topics, message.msg, message.when)
            case Retire():
                self._on_retire(client.id, message)
            case Replicate():
                self._on_replicate(client.id, message)
            case Rebalance():
                self._on_rebalance(client.id, message)
            case ManageMemory():
                self._on_manage(client.id, message)
            case Meet():
                self._on_meet(client.id, message)
            case Took():
                self.boxes.took(client.id, message.rid)
            case Withdraw():
                self.room.withdraw(client.id, message.rid)
            case Shutdown():
                self._on_shutdown(client, message)
            case Bye():
                self._remove_client(client)
            case _:
                assert_never(message)

    def _on_asked(self, message: Retire | Replicate | Rebalance | Restart) -> None:
        """The program itself asks for something."""
        me = ClientRecord(ClientId(""), "the scheduler itself", remote=False)
        match message:
            case Retire():
                self._on_retire(me.id, message)
            case Replicate():
                self._on_replicate(me.id, message)
            case Rebalance():
                self._on_rebalance(me.id, message)
            case Restart():
                self._on_restart(me, message)
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
        if not message.fifo or state.now - client.submitted > message.fifo:
            state.generation += 1
            client.generation = state.generation
        client.submitted = state.now
        options, generation = message.options, client.generation
        self._enter_spans(message)
        self._look_for_redefinitions(client, message)
        fresh: list[tuple[Task, list[str]]] = []
        for spec in message.tasks:
            task, new = state.define(spec, spec.options or options, generation)
            if new and spec.deps:
                fresh.append((task, spec.deps))
        for task, deps in fresh:
            state.link(task, deps)
        self._on_want(client, message.wants)
        if message.tasks and self.plugins["scheduler"]:
            keys, wants = [spec.key for spec in message.tasks], message.wants
            self._notify("update_graph", client.id, keys, wants, options.priority, state.stimulus)
        for spec in message.tasks:
            task_or_none = state.tasks.get(spec.key)
            if task_or_none is None:
                continue
            if not task_or_none.needed:
                state.unwant(client, task_or_none)
            elif task_or_none.state is TaskState.RELEASED:
                state.require(task_or_none)  # it lacked an input before, and others want it still

    def _look_for_redefinitions(self, client: ClientRecord, message: Submit) -> None:
        """Make room for other definitions of known keys, or warn (once for all) where somebody wants the first."""
        state = self.state
        kept: set[Task] = set()
        warnings = []
        for spec in reversed(message.tasks):  # what is made of a key comes after it: each task is walked once
            known = state.tasks.get(spec.key)
            if known is None or known.unknown:
                continue
            text = explain.redefinition(known, spec)
            if text and not state.abandon(known, kept):
                warnings.append(text)
        if warnings:
            more = f" (and {len(warnings) - 1} other keys)" if len(warnings) > 1 else ""
            self._log(WARNING, warnings[-1] + more)
            state.tell(client, Warned(warnings[-1] + more))

    def _on_want(self, client: ClientRecord, keys: list[str]) -> None:
        state = self.state
        for key in dict.fromkeys(keys):
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
        self.owing.lost(client.id)
        self.calls.client_lost(client.id)
        self.carrying.lost(client.id)
        self.topics.client_lost(client.id)
        self._meeting_lost(client.id)
        self.topics.log(["all", client.id], {"action": "remove-client", "client": client.id})
        self._notify("remove_client", client.id)

    def _on_query(self, client: ClientRecord, message: Query) -> None:
        try:
            value = info.answer(self, message.what, message.args)
        except Exception as error:  # a question changes nothing: whatever it raises is its answer
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

    def _on_restart(self, client: ClientRecord, message: Restart) -> None:
        state = self.state
        if message.workers is not None:
            self._restart_some(client, message.rid, message.timeout, message.workers)
            return
        for other in state.clients.values():
            keys = [task.key for task in other.wants]
            for task in tuple(other.wants):
                state.unwant(other, task)
            if keys:
                state.tell(other, KeysCancelled(keys, "the cluster was restarted"))
        state.settle()
        self.topics.log(["all", client.id], {"action": "restart", "workers": len(state.workers)})
        self._notify("restart")
        self._restart_all(client, message.rid, message.timeout, message.wait_for_workers)

    def _on_shutdown(self, client: ClientRecord, message: Shutdown) -> None:
        self._say(client.id, Answer(message.rid, "OK"))
        self.close("a client shut the cluster down")

    def close(self, reason: str, failed: bool = False) -> None:
        """Tell everyone, and end; ``failed``: not because anybody wanted it to."""
        state = self.state
        for nanny in state.nannies.values():
            self._say(nanny.id, Close(reason, failed))
        for id in [*state.workers, *self.retired]:
            self._say(id, Close(reason, failed))
        for client in state.clients.values():
            self._say(client.id, Bye(reason, failed))
        self._effects.append(Stop(reason, failed))

    def stop(self, reason: str, failed: bool = False) -> list[Effect]:
        """As :meth:`close`, for the program itself."""
        self._effects = []
        self.close(reason, failed)
        return self._effects
