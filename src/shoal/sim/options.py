"""What one run is like, drawn from its seed."""

from __future__ import annotations

from dataclasses import dataclass, fields
from random import Random
from typing import Any


@dataclass(frozen=True)
class Options:
    """The circumstances of a run; all of it follows from ``seed`` unless given."""

    seed: int
    #: Workers at the start, and threads of each.
    workers: int
    nthreads: int
    #: Tasks of one submission, and how many submissions there are.
    tasks: int
    submissions: int
    #: Clients.
    clients: int
    #: Deaths that a task may see.
    allowed_failures: int
    #: Misfortunes and changes of mind.
    faults: int
    #: Seconds that a message takes, most and least; drawn anew for each.
    delay: tuple[float, float]
    #: Seconds that a task runs, most and least.
    duration: tuple[float, float]
    #: Share of the tasks that raise the first time, and that always raise.
    flaky: float
    seceding: float
    broken: float
    retries: int
    #: Whether workers have resources, each others, and some submissions need some of them.
    resources: bool
    #: Tasks sent ahead for each thread.
    saturation: float
    #: Share of the tasks that submit others, and wait for them.
    launching: float
    #: Whether workers have a pool of another name, of one thread, and some submissions ask for it.
    executors: bool
    #: Whether the tasks of some submissions make objects that stay where they were made.
    actors: bool
    #: Whether some submissions may run on one host only.
    restricted: bool
    #: Whether workers have nannies, and the share of the starts that fail.
    nannies: bool
    bad_starts: float
    #: Seconds of silence after which a worker is removed, and that a task waits for a worker that may run it.
    ttl: float | None
    no_workers_timeout: float | None
    #: Shape of the graphs.
    shape: str
    #: Bytes that each worker may hold, for those that are moved; 0 is no limit.
    room: int
    #: Whether no worker crashes and no user changes their mind: workers come, pause, are slow, and retire.
    calm: bool

    @property
    def large(self) -> bool:
        """Whether it is too large to check everything after every event."""
        return self.tasks * self.submissions > 5_000 or self.workers > 500

    @classmethod
    def draw(cls, seed: int, **given: Any) -> Options:
        """Draw all that is not given."""
        rng = Random(f"options-{seed}")
        slow = rng.random() < 0.3
        drawn: dict[str, Any] = {
            "seed": seed,
            "workers": rng.randint(1, 5),
            "nthreads": rng.randint(1, 3),
            "tasks": rng.choice([5, 15, 30, 60]),
            "submissions": rng.randint(1, 4),
            "clients": rng.randint(1, 2),
            "allowed_failures": rng.choice([0, 1, 3, 100]),
            "faults": rng.choice([0, 3, 8, 15]),
            "delay": (0.05, 0.3) if slow else (0.0001, rng.choice([0.001, 0.05])),
            "duration": (0.0, rng.choice([0.001, 0.05, 0.5])),
            "flaky": rng.choice([0.0, 0.0, 0.2]),
            "seceding": rng.choice([0.0, 0.0, 0.3]),
            "broken": rng.choice([0.0, 0.0, 0.05]),
            "retries": rng.randint(0, 2),
            "resources": rng.random() < 0.3,
            "saturation": rng.choice([1.0, 1.1, 2.0]),
            "launching": rng.choice([0.0, 0.0, 0.15]),
            "restricted": rng.random() < 0.3,
            "actors": rng.random() < 0.2,
            "executors": rng.random() < 0.2,
            "nannies": rng.random() < 0.4,
            "bad_starts": rng.choice([0.0, 0.2]),
            "ttl": rng.choice([None, 1.0]),
            "no_workers_timeout": rng.choice([None, None, 1.0]),
            "shape": rng.choice(["map", "chains", "tree", "shuffle", "fan", "random", "random"]),
        }
        drawn["room"] = rng.choice([0, 0, 0, 100, 400])
        drawn["calm"] = rng.random() < 0.25
        if drawn["calm"]:
            drawn |= {"flaky": 0.0, "broken": 0.0, "launching": 0.0, "bad_starts": 0.0}
            drawn |= {"actors": False, "ttl": None, "no_workers_timeout": None}
        return cls(**{**drawn, **{name: value for name, value in given.items() if value is not None}})

    def __str__(self) -> str:
        return " ".join(f"{field.name}={getattr(self, field.name)}" for field in fields(self))
