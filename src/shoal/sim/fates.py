"""How tasks behave: how long each takes, which fail, which leave the pool, which launch others, where they may run."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Final

from shoal.messages import Options as TaskOptions
from shoal.sim.options import Options
from shoal.sim.workload import value_of

#: Depth to which tasks launch tasks that launch tasks.
_DEEPEST = 3
_KID = ".kid"
#: What workers have, where there are resources, and what submissions ask for; the first has enough for all of them.
OFFERS: Final[tuple[dict[str, float], ...]] = (
    {"R": 2.0, "G": 1.0},
    {"R": 1.0},
    {"R": 1.0, "G": 0.3},
    {"G": 1.0},
    {"R": 0.5},
    {},
)
SHAPES: Final[tuple[dict[str, float], ...]] = (
    {"R": 1.0},
    {"R": 1.0},
    {"R": 0.1},
    {"G": 0.1},
    {"R": 0.5, "G": 0.2},
    {"R": 2.0},
    {"G": 0.0},
)


class Fates:
    """What is drawn for each key; the same in every run of a seed."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._runs: Counter[str] = Counter()
        #: What each submission of a key asked for.
        self._asked: dict[str, list[TaskOptions]] = {}

    def _draw(self, what: str, key: str) -> float:
        return Random(f"{what}-{self._options.seed}-{key}").random()

    def duration(self, key: str) -> float:
        """Seconds that a task runs."""
        low, high = self._options.duration
        return low + (high - low) * self._draw("duration", key)

    def resources(self, worker: str, enough: bool) -> dict[str, float] | None:
        """What a worker has: enough for every task, or less."""
        if not self._options.resources:
            return None
        return dict(OFFERS[0] if enough else OFFERS[int(len(OFFERS) * self._draw("offer", worker))])

    def fails(self, key: str) -> bool:
        """Whether a task may fail for good."""
        return self._kind(key) == "broken" or (self._kind(key) == "flaky" and self._options.retries == 0)

    def secedes(self, key: str) -> bool:
        """Whether a task leaves the pool half-way."""
        return self._draw("secede", key) < self._options.seceding

    def kids(self, key: str) -> dict[str, list[str]]:
        """The graph that a task submits itself, and waits for; most submit none."""
        depth = key.count(_KID)
        if depth >= _DEEPEST or self._draw("launch", key) >= self._options.launching:
            return {}
        count = 1 + int(3 * self._draw("kids", key))
        first = f"{key}{_KID}0"
        return {f"{key}{_KID}{n}": [first] if n == 2 else [] for n in range(count)}

    def _kind(self, key: str) -> str:
        draw = self._draw("kind", key)
        broken, flaky = self._options.broken, self._options.flaky
        if _KID in key or draw >= broken + flaky:
            return "good"
        if draw < broken:
            return "broken"
        return "flaky" if draw < broken + flaky / 2 else "rescheduling"

    def outcome(self, key: str) -> str:
        """How the execution that ends now ends."""
        kind = self._kind(key)
        self._runs[key] += 1
        if kind == "broken" or (kind == "flaky" and self._runs[key] == 1):
            return "error"
        return "reschedule" if kind == "rescheduling" and self._runs[key] == 1 else "ok"

    def value(self, key: str, inputs: list[bytes], payload: bytes = b"") -> bytes:
        """What the task computes, with what its kids compute."""
        kids = self.kids(key)
        values = self.sequential(kids)
        return value_of(key, [*inputs, *(values[kid] for kid in kids)], payload)

    def sequential(self, tasks: dict[str, list[str]]) -> dict[str, bytes]:
        """The value of every key, computed here, one after another."""
        values: dict[str, bytes] = {}
        for key, deps in tasks.items():
            values[key] = self.value(key, [values[dep] for dep in deps])
        return values

    def asked(self, keys: dict[str, list[str]], options: TaskOptions) -> None:
        """These keys were submitted with these options."""
        for key in keys:
            self._asked.setdefault(key, []).append(options)

    def first_asked(self, key: str) -> TaskOptions:
        return self._asked[key][0]

    def is_actor(self, key: str) -> bool:
        """Whether some submission of ``key`` made an actor of it."""
        return any(asked.actor for asked in self._asked.get(key, ()))

    def may_run(self, key: str, host: str, resources: dict[str, float]) -> bool:
        """Whether some submission of ``key`` lets it run there."""
        return any(
            (not asked.workers or asked.allow_other_workers or host in asked.workers)
            and all(resources.get(name, 0) >= need for name, need in (asked.resources or {}).items())
            for asked in self._asked.get(key, [TaskOptions()])
        )
