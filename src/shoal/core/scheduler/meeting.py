"""What clients do with each other by way of the scheduler: one method for all requests of that kind."""

from __future__ import annotations

from typing import Any

from shoal.core.effects import WARNING
from shoal.core.scheduler import arguments
from shoal.core.scheduler.boxes import Boxes
from shoal.core.scheduler.locks import Locks
from shoal.core.scheduler.progress import Watches
from shoal.core.scheduler.roster import ClientRecord
from shoal.core.scheduler.settings import Settings
from shoal.core.scheduler.spreading import Spreading
from shoal.core.scheduler.waiting import WaitingRoom
from shoal.errors import UsageError
from shoal.ids import ClientId
from shoal.messages import FireAndForget, KeyErred, KeysDone, KilledTask, Meet, Options, Submit

#: Wants what was fired and forgotten. No peer can have an id with a space.
FORGETFUL = ClientId("fire and forget")


class Meeting(Spreading):
    """Locks, events, queues, variables, datasets, metadata."""

    def __init__(self, id: str, settings: Settings | None = None) -> None:
        super().__init__(id, settings)
        told = self.settings
        self.room = WaitingRoom(self._answer)
        self.locks = Locks(self.state, self.room, told.lease_timeout, told.lease_check, self._on_expired)
        self.boxes = Boxes(self.state, self.room, self._answer)
        self.watches = Watches(self.state)

    def _enter_spans(self, message: Submit) -> None:
        """Note how many tasks were submitted under which spans."""
        counts: dict[str, int] = {}
        asked: dict[str, Options] = {}
        for spec in message.tasks:
            options = spec.options or message.options
            if options.span_ids:
                innermost = options.span_ids[-1]
                asked[innermost] = options
                counts[innermost] = counts.get(innermost, 0) + 1
        for innermost, options in asked.items():
            self.spans.enter(options.span or [], options.span_ids or [], counts[innermost], self.topics.now())

    def _on_fire_and_forget(self, message: FireAndForget) -> None:
        """Want these until they are done."""
        state = self.state
        record = state.clients.get(FORGETFUL)
        if record is None:
            record = state.clients[FORGETFUL] = ClientRecord(FORGETFUL, "what runs for nobody", remote=False)
        for key in message.keys:
            if (task := state.tasks.get(key)) is not None:
                state.want(record, task)

    def _forget_done(self) -> None:
        """Let go of what is done that ran for nobody."""
        record = self.state.clients.get(FORGETFUL)
        if record is None:
            return
        for message in record.out:
            match message:
                case KeysDone():
                    keys = [item.key for item in message.items]
                case KeyErred() | KilledTask():
                    keys = [message.key]
                case _:
                    continue  # it is computed again, or was let go of already
            for key in keys:
                if (task := self.state.tasks.get(key)) is not None:
                    self.state.unwant(record, task)
        record.out.clear()
        if not record.wants:
            del self.state.clients[FORGETFUL]

    def _step_meetings(self, now: float) -> None:
        """Answer those whose time is over, and take back leases of which nothing was heard."""
        self._forget_done()
        self.room.step(now)
        self.locks.step(now)

    def _meetings_due(self) -> float | None:
        due = [at for at in (self.room.deadline(), self.locks.deadline()) if at is not None]
        return min(due, default=None)

    def _on_expired(self, client: ClientId, names: list[str], lease: str) -> None:
        text = (
            f"the lease of {', '.join(map(repr, names))} was taken back: nothing was heard of its client for "
            f"{self.settings.lease_timeout:g} s (distributed.scheduler.locks.lease-timeout)"
        )
        self._log(WARNING, f"{client}: {text}")
        self.topics.log(["all", client], {"action": "lease-expired", "client": client, "names": names, "lease": lease})

    def _meeting_lost(self, client: ClientId) -> None:
        """``client`` is gone."""
        self.room.client_lost(client)
        self.locks.client_lost(client)
        self.boxes.client_lost(client)
        self.watches.client_lost(client)

    def _on_meet(self, client: ClientId, message: Meet) -> None:
        try:
            self._meet(client, message)
        except (UsageError, TypeError, KeyError) as error:
            self._answer(client, message.rid, None, str(error))

    def _meet(self, client: ClientId, message: Meet) -> None:
        rid, name, args = message.rid, message.name, arguments.check(message.args)
        item = (message.payload, message.keys)
        limit = args.get("timeout")
        due = None if limit is None else self.state.now + limit
        locks, boxes = self.locks, self.boxes
        value: Any = None
        match message.what:
            case "semaphore-register":
                locks.register(name, args["most"])
            case "semaphore-acquire":
                locks.acquire(client, rid, name, args["most"], args["lease"], due)
                return
            case "lease-release":
                value = locks.release(args["lease"])
            case "lease-refresh":
                value = locks.refresh(client, args["leases"])
            case "semaphore-value":
                value = locks.value(name)
            case "semaphore-close":
                locks.close(name)
            case "several-acquire":
                locks.acquire_several(client, rid, args["names"], args["count"], args["lease"], due)
                return
            case "event-set":
                boxes.event_set(name)
            case "event-clear":
                boxes.events.pop(name, None)
            case "event-is-set":
                value = boxes.events.get(name, False)
            case "event-wait":
                boxes.event_wait(client, rid, name, due)
                return
            case "queue-put":
                boxes.queue_put(client, rid, name, args["most"], item, due, args.get("first", False))
                return
            case "queue-get":
                boxes.queue_get(client, rid, name, args["most"], args["count"], due)
                return
            case "queue-size":
                value = boxes.queue_size(name)
            case "queue-close":
                boxes.queue_close(name)
            case "variable-set":
                boxes.variable_set(name, item)
            case "variable-get":
                boxes.variable_get(client, rid, name, due)
                return
            case "variable-delete":
                boxes.variable_delete(name)
            case "dataset-publish":
                value = boxes.publish(name, item, args["override"])
            case "dataset-get":
                value = boxes.dataset(client, rid, name)
            case "dataset-delete":
                value = boxes.unpublish(name)
            case "dataset-list":
                value = list(boxes.datasets)
            case "progress-begin":
                value = self.watches.begin(client, message.keys, args["complete"], args["by"])
            case "progress-look":
                value = self.watches.look(args["number"])
            case "progress-end":
                self.watches.end(args["number"])
            case "metadata-set":
                boxes.set_metadata(args["names"], args["value"])
            case "metadata-get":
                value = boxes.get_metadata(args["names"])
            case _:
                raise UsageError(f"the scheduler cannot do {message.what!r}")
        self._answer(client, rid, value)
