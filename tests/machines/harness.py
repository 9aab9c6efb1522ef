"""A scheduler core and worker cores, joined by queues: no sockets, no clock, messages through the real codec."""

from __future__ import annotations

import random
from collections import deque
from typing import Any

from shoal.core.effects import CancelRun, Drop, Effect, Fetch, Run, Send
from shoal.core.events import Event, FetchDone, LinkLost, LinkOpened, Outcome, Outcomes, Received
from shoal.core.framing import Codec
from shoal.core.scheduler.reactor import SchedulerCore
from shoal.core.scheduler.settings import Settings
from shoal.core.worker.reactor import WorkerCore
from shoal.messages import INBOUND, OUTBOUND, Options, RegisterClient, RegisterWorker, Submit, TaskError, TaskSpec


class Cluster:
    """Cores in one process; ``step`` does one thing at random, by the seed."""

    def __init__(self, n_workers: int, seed: int = 0, nthreads: int = 1, **settings: Any) -> None:
        self.random = random.Random(seed)
        self.now = 1.0
        self.scheduler = SchedulerCore("s", Settings(validate=True, **settings))
        self.workers: dict[str, WorkerCore] = {}
        self.data: dict[str, set[str]] = {}
        self.running: dict[str, list[Run]] = {}
        self.skipped: dict[str, set[str]] = {}
        self.fetches: dict[str, list[Fetch]] = {}
        self.lines: dict[tuple[str, str], deque[Any]] = {}
        self.inbox: list[Any] = []
        self.failing: dict[str, int] = {}
        self.executions: dict[str, int] = {}
        self.roles = {"c": "client"}
        self.feed(LinkOpened("client", "c"))
        self.client(RegisterClient())
        for _ in range(n_workers):
            self.join(nthreads)

    def join(self, nthreads: int = 1) -> str:
        name = f"w{len(self.roles)}"
        self.roles[name] = "worker"
        self.workers[name] = WorkerCore(name, nthreads, validate=True)
        self.data[name], self.running[name], self.fetches[name] = set(), [], []
        self.skipped[name] = set()
        self.feed(LinkOpened("worker", name))
        self.line(name, "s").append(RegisterWorker(name, name, [f"tcp://{name}"], nthreads, 0, 1, "host"))
        return name

    def line(self, source: str, target: str) -> deque[Any]:
        return self.lines.setdefault((source, target), deque())

    def client(self, message: Any) -> None:
        self.line("c", "s").append(message)

    def submit(self, tasks: dict[str, list[str]], wants: list[str], **options: Any) -> None:
        specs = [TaskSpec(key, "f", b"", deps, order) for order, (key, deps) in enumerate(tasks.items())]
        self.client(Submit(specs, {"f": b"F"}, Options(**options), wants))

    def feed(self, *events: Event) -> None:
        for effect in self.scheduler.handle(events, self.now):
            if isinstance(effect, Send):
                self.line("s", effect.to).append(effect.message)

    def tell(self, name: str, *events: Event) -> None:
        for effect in self.workers[name].handle(events, self.now):
            match effect:
                case Send():
                    self.line(name, "s").append(effect.message)
                case Run():
                    assert set(effect.deps) <= self.data[name], "an input is not here"
                    self.running[name].append(effect)
                case CancelRun():
                    self.skipped[name] |= set(effect.keys)
                case Fetch():
                    self.fetches[name].append(effect)
                case Drop():
                    self.data[name] -= set(effect.keys)
                case _:
                    self.other(name, effect)

    def other(self, name: str, effect: Effect) -> None:
        """What else a worker asks for."""

    def hear(self, name: str, messages: list[Any]) -> None:
        """A client is told something."""
        self.inbox += messages

    def kill(self, name: str) -> None:
        del self.workers[name]
        self.running.pop(name)
        self.fetches.pop(name)
        self.lines.pop((name, "s"), None)
        self.lines.pop(("s", name), None)
        self.feed(LinkLost("worker", name, "killed"))

    def choices(self) -> list[tuple[str, Any]]:
        found: list[tuple[str, Any]] = [("line", pair) for pair, line in self.lines.items() if line]
        found += [("run", name) for name, runs in self.running.items() if runs]
        found += [("fetch", name) for name, fetches in self.fetches.items() if fetches]
        return found

    def step(self) -> bool:
        found = self.choices()
        if not found:
            return False
        self.now += 0.001
        kind, what = self.random.choice(found)
        getattr(self, f"_step_{kind}")(what)
        return True

    def step_lines(self) -> bool:
        """Deliver something, and let nothing run or be fetched."""
        waiting = [pair for pair, line in self.lines.items() if line]
        if waiting:
            self._step_line(self.random.choice(waiting))
        return bool(waiting)

    def _step_line(self, pair: tuple[str, str]) -> None:
        source, target = pair
        line = self.lines[pair]
        count = self.random.randint(1, len(line))
        messages = [line.popleft() for _ in range(count)]
        union = INBOUND[self.roles[source]] if target == "s" else OUTBOUND[self.roles[target]]
        codec = Codec(union)
        body, buffers = codec.encode(messages)
        messages = codec.decode(body, [memoryview(b) for b in buffers])
        if target == "s":
            self.feed(Received(source, messages))
        elif self.roles[target] == "client":
            self.hear(target, messages)
        else:
            self.tell(target, Received("s", messages))

    def _step_run(self, name: str) -> None:
        run = self.running[name].pop(self.random.randrange(len(self.running[name])))
        if run.key in self.skipped[name] and self.random.random() < 0.5:
            self.skipped[name].discard(run.key)
            self.tell(name, Outcomes([Outcome(run.key, "skipped")]))
            return
        self.skipped[name].discard(run.key)
        self.executions[run.key] = self.executions.get(run.key, 0) + 1
        if self.failing.get(run.key, 0) > 0:
            self.failing[run.key] -= 1
            error = TaskError(None, None, "ValueError: no")
            self.tell(name, Outcomes([Outcome(run.key, "error", 0, "", self.now, self.now, None, error)]))
            return
        self.data[name].add(run.key)
        self.tell(name, Outcomes([Outcome(run.key, "ok", 10, "int", self.now, self.now + 0.01, b"v")]))

    def _step_fetch(self, name: str) -> None:
        fetch = self.fetches[name].pop(self.random.randrange(len(self.fetches[name])))
        held = self.data.get(fetch.peer, set()) if fetch.peer in self.workers else set()
        got = [key for key in fetch.keys if key in held]
        self.data[name] |= set(got)
        missing = [key for key in fetch.keys if key not in held]
        editions = {key: self.workers[fetch.peer].keys[key].edition for key in got}
        self.tell(name, FetchDone(fetch.peer, [(key, 10, "int") for key in got], missing, {}, editions))

    def settle(self, limit: int = 100_000) -> None:
        for _ in range(limit):
            if not self.step():
                return
        raise AssertionError("does not come to rest")

    def states(self) -> dict[str, str]:
        return {key: task.state.label for key, task in self.scheduler.state.tasks.items()}
