"""The scheduler's dealings with nannies: deaths of workers, restarts that users ask for, and plugins for all."""

from __future__ import annotations

from typing import Any, assert_never

from shoal.core.effects import ERROR, WARNING, InstallPlugin
from shoal.core.scheduler.calls import PendingRestart
from shoal.core.scheduler.fleet import Fleet
from shoal.core.scheduler.roster import ClientRecord, NannyRecord, WorkerRecord
from shoal.core.scheduler.settings import Settings
from shoal.errors import UsageError
from shoal.ids import ClientId, SlotId, WorkerId
from shoal.messages import (
    Answer,
    AskRetirement,
    Bye,
    ChangePlugin,
    Close,
    FromNanny,
    Leaving,
    LogEvent,
    NannyRegistered,
    RegisterNanny,
    RegisterPlugin,
    RestartWorker,
    WorkerDied,
    WorkerGaveUp,
)

#: Lines of a dead worker's stderr that errors repeat.
_LAST_WORDS = 6


class Supervision(Fleet):
    """Worker processes end and come again."""

    def __init__(self, id: str, settings: Settings | None = None) -> None:
        super().__init__(id, settings)
        self.restarts: list[PendingRestart] = []

    def _on_nanny_message(self, peer: str, message: FromNanny) -> None:
        state = self.state
        nanny = state.nannies.get(SlotId(peer))
        if isinstance(message, RegisterNanny):
            id = SlotId(peer)
            if id in self.left:
                self._say(peer, Close(f"it has left, and may not come back: {self.left[id]}"))
                return
            state.nannies[id] = NannyRecord(id, message.name, message.host, message.pid, message.address)
            self._say(peer, NannyRegistered(self.id, dict(self.plugins["nanny"])))
            return
        if nanny is None:
            return
        match message:
            case WorkerDied():
                self._on_worker_died(nanny, message)
            case WorkerGaveUp():
                self._log(ERROR, f"nanny {nanny.name} gave up: {message.reason}")
                self.topics.log(["all", "scheduler"], {"action": "nanny-gave-up", "reason": message.reason})
            case Leaving():
                self._on_leaving(peer, message.number)
            case AskRetirement():
                worker = state.by_slot.get(nanny.id)
                if worker is not None:
                    self._on_ask_retirement(worker, message)
                elif not message.restart:
                    self._leave_slot(nanny.id, message.reason)
                    self._say(peer, Close(message.reason))
            case LogEvent():
                self.topics.log(message.topics, message.msg, message.when)
            case Answer():
                self._answer_calls(self.calls.answered(peer, message))
            case Bye():
                self._remove_nanny(nanny, "the nanny closed")
                worker = state.by_slot.get(nanny.id)
                if worker is not None:  # its process ended before the nanny had heard who it is
                    self._remove_worker(worker, "its nanny closed", expected=True)
            case _:
                assert_never(message)

    def _remove_nanny(self, nanny: NannyRecord, reason: str) -> None:
        """No worker will come back there."""
        if self.state.nannies.pop(nanny.id, None) is None:
            return
        self._leave_slot(nanny.id, reason)  # the registration of a worker that ended with it may be on its way
        self._answer_calls(self.calls.peer_lost(nanny.id, reason))

    def _on_worker_died(self, nanny: NannyRecord, message: WorkerDied) -> None:
        state = self.state
        worker = state.workers.get(WorkerId(message.worker))
        if worker is not None and worker.slot != nanny.id:
            raise UsageError(f"the nanny {nanny.name} says that worker {worker.name} died, which is not its own")
        if nanny.worker == message.worker:
            nanny.worker = None
        nanny.died(message.cause, message.reason, message.restarting, state.now)
        self.deaths[message.cause] = self.deaths.get(message.cause, 0) + 1
        address = message.address or message.worker
        told = {
            "action": "worker-died", "worker": address, "name": nanny.name, "cause": message.cause,
            "reason": message.reason, "running": message.running, "peak": message.peak, "output": message.output,
            "restarting": message.restarting, "exitcode": message.exitcode, "signal": message.signal,
        }  # fmt: skip
        self.topics.log(["all", address] if address else "all", told)
        if message.cause == "memory":
            self.topics.log("worker-restart-memory", told)
        if worker is not None:
            self._remove_worker(worker, _with_last_words(message), message.expected, message.running)
        elif not message.expected and nanny.parted != message.worker:
            self._log(WARNING, f"worker {nanny.name} died: {message.reason}")
            self._blame(nanny.name, address, _with_last_words(message), message.running)
        if message.cause == "memory" and not message.expected:
            self._blame_burdens(nanny, address, message)
        self._notify("worker_died", told)

    def _blame_burdens(self, nanny: NannyRecord, address: str, message: WorkerDied) -> None:
        """Its memory was too small: count that also against those whose inputs may have been too much for it."""
        worker, brought, large = nanny.burdens or ("", {}, False)
        nanny.burdens = None
        if worker == message.worker and (large or not message.running):
            brought = {key: words for key, words in brought.items() if key not in message.running}
            self._blame(nanny.name, address, _with_last_words(message), [], brought)

    # -------------------------------------------------------------------------------------------- restarts

    def _restart_all(self, client: ClientRecord, rid: int, timeout: float, wait_for_workers: bool) -> None:
        """Replace every worker process; tasks were forgotten before."""
        restart = PendingRestart(client.id, rid, self.state.now + timeout, timeout, wait_for_workers)
        for worker in tuple(self.state.workers.values()):
            if not self._restart_one(restart, worker):
                self._remove_worker(worker, "the cluster was restarted, and it has no nanny", expected=True)
        self.restarts.append(restart)

    def _restart_some(self, client: ClientRecord, rid: int, timeout: float, names: list[str]) -> None:
        """Replace the worker processes that are named."""
        restart = PendingRestart(client.id, rid, self.state.now + timeout, timeout, True)
        restart.results = {}
        for name in names:
            found = [worker for worker in self.state.workers.values() if worker.answers_to(name)]
            if not found:
                restart.results[name] = "there is no such worker"
            for worker in found:
                if self._restart_one(restart, worker):
                    restart.names[worker.slot] = name
                else:
                    restart.results[name] = "it has no nanny that could restart it"
        self.topics.log(["all", client.id], {"action": "restart-workers", "workers": names})
        self.restarts.append(restart)

    def _restart_one(self, restart: PendingRestart, worker: WorkerRecord) -> bool:
        nanny = self.state.nannies.get(worker.slot)
        if nanny is None:
            return False
        restart.waiting[nanny.id] = worker.id
        self._say(nanny.id, RestartWorker(0, "was restarted, as a client asked", restart.timeout, False, worker.id))
        return True

    def _check_restarts(self, now: float) -> None:
        for restart in tuple(self.restarts):
            left = [slot for slot, old in restart.waiting.items() if not self._is_replaced(slot, old)]
            if left and restart.wait_for_workers and now < restart.deadline:
                continue
            self.restarts.remove(restart)
            if restart.results is not None:
                for slot, name in restart.names.items():
                    gone = slot not in self.state.nannies
                    restart.results[name] = "removed" if gone else "timed out" if slot in left else "OK"
                self._answer(restart.client, restart.rid, restart.results)
            elif left and restart.wait_for_workers:
                names = ", ".join(self.state.nannies[s].name if s in self.state.nannies else s for s in left)
                text = f"{len(left)} workers did not come back within {restart.timeout:g} s: {names}"
                self._answer(restart.client, restart.rid, None, f"TimeoutError: {text}")
            else:
                self._answer(restart.client, restart.rid, "OK")

    def _is_replaced(self, slot: SlotId, old: WorkerId) -> bool:
        nanny = self.state.nannies.get(slot)
        return nanny is None or (
            nanny.worker is not None and nanny.worker != old and nanny.worker in self.state.workers
        )

    # -------------------------------------------------------------------------------------------- plugins

    def _on_register_plugin(self, client: ClientRecord, message: RegisterPlugin) -> None:
        """Keep it for those that come later, and have those that are there install (or remove) it."""
        state = self.state
        known = self.plugins.get(message.kind)
        if known is None:
            state.tell(client, Answer(message.rid, None, f"there are no plugins of kind {message.kind!r}"))
            return
        if message.name in known and message.idempotent and message.payload is not None:
            state.tell(client, Answer(message.rid, {"results": {}, "errors": {}}))
            return
        if message.payload is None and message.name not in known:
            state.tell(client, Answer(message.rid, None, f"there is no {message.kind} plugin {message.name!r}"))
            return
        if message.kind == "scheduler":
            self._effects.append(InstallPlugin(message.rid, message.name, message.payload, client.id))
            return
        self._change_plugin(client.id, message.rid, message.kind, message.name, message.payload)

    def _change_plugin(self, client: ClientId, rid: int, kind: str, name: str, payload: Any) -> None:
        known = self.plugins[kind]
        known.pop(name, None)
        if payload is not None:
            known[name] = payload
        peers = self.state.workers.values() if kind == "worker" else self.state.nannies.values()
        call = self.calls.begin(client, rid, {str(peer.id): _where(peer) for peer in peers})
        for peer in peers:
            self._say(peer.id, ChangePlugin(call.id, name, payload))
        self._answer_calls([call])

    def _on_plugins_changed(self, hooks: dict[str, list[str]]) -> None:
        """The scheduler's own plugins are these now."""
        self.plugins["scheduler"] = dict.fromkeys(hooks)
        wanted = {hook for known in hooks.values() for hook in known}
        self.state.watched = [] if "transition" in wanted else None
        self.topics.watched = [] if "log_event" in wanted else None


def _where(peer: WorkerRecord | NannyRecord) -> str:
    return peer.address if isinstance(peer, WorkerRecord) else peer.name


def _with_last_words(message: WorkerDied) -> str:
    """Why it died, and a few of the lines that it said last: where it crashed, if it says so."""
    lines = [line.strip() for line in message.output]
    crash = next((at for at, line in enumerate(lines) if line.startswith("Fatal Python error")), None)
    said = lines[-_LAST_WORDS:] if crash is None else lines[crash : crash + _LAST_WORDS]
    return f"{message.reason}; its last words: {' | '.join(said)}" if said else message.reason
