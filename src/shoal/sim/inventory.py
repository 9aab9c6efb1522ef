"""How much a core holds: the length of every container that is reached from it.

Once everybody is gone and nothing is wanted any more, a core is as small as a new one: each table has a bound, or an
owner whose end empties it. What is remembered on purpose is listed here, with the reason.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import Any, Final

#: What may be larger than in a new core, by class and attribute: why that is bounded.
REMEMBERED: Final = {
    "SchedulerCore._effects": "what the last turn asked for",
    "WorkerCore._effects": "what the last turn asked for",
    "ClientCore._effects": "what the last turn asked for",
    "SchedulerState.story": "the last transitions (story-length)",
    "SchedulerState.stream": "the last executions (task-stream-length)",
    "SchedulerState.prefixes": "what was learnt of prefixes (PREFIXES)",
    "SchedulerState.pools": "names of pools of threads that workers had",
    "SchedulerCore.left": "slots that may not come back, the last 10,000",
    "SchedulerCore.deaths": "by cause, of which there are a dozen",
    "SchedulerCore.retired": "workers that were let go of and whose links are open",
    "Topics.events": "the last events of each topic (TOPICS)",
    "Topics._expiring": "topics whose worker or client left (EXPIRING)",
    "Spans.spans": "the last spans (1000)",
    "WorkerCore.story": "the last transitions",
    "MemoryManager._emptiest": "the workers of its last pass",
    "Scarce._shapes": "what tasks took of what there is little (SHAPES_REMEMBERED)",
    "Slots._units": "names of resources that tasks here took",
    "Fetcher.peers": "workers that live, and those that left since this one was told of any",
    "Fetcher._far": "the same workers",
    "Fetcher._backoff": "the same workers",
    "Fetcher._round": "the same workers, those that could not be reached",
    "Fetcher._wants": "the same workers",
    "Slots._durations": "what was learnt of functions (10,000)",
}
#: Tables that were emptied may keep so many entries, which the next use sweeps away.
SLACK: Final = {"WaitingRoom._due": 64, "TaskQueue._heap": 64}


def sizes(core: Any, modules: tuple[str, ...] = ("shoal.core.",)) -> Counter[str]:
    """The lengths of all containers, by the class and attribute that they were reached from.

    Parameters
    ----------
    core
        Where to begin: a core, or a program.
    modules
        How the names of the modules begin of whose objects the attributes are looked at.
    """
    found: Counter[str] = Counter()
    seen: set[int] = set()
    stack: list[tuple[str, Any]] = [(type(core).__name__, core)]
    while stack:
        path, thing = stack.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, dict | list | set | frozenset | tuple | deque):
            if not isinstance(thing, tuple | frozenset):
                found[path] += len(thing)
            if path not in REMEMBERED and path not in SLACK:
                stack += [(path + "[]", inner) for inner in thing]
                stack += [(path + "[]", inner) for inner in thing.values()] if isinstance(thing, dict) else []
        elif str(type(thing).__module__).startswith(modules) and not isinstance(thing, type):
            kind = type(thing)
            stack += [(f"{kind.__name__}.{name}", value) for name, value in _attributes(thing)]
    return found


def _attributes(thing: Any) -> list[tuple[str, Any]]:
    names = dict.fromkeys(getattr(thing, "__dict__", ()))
    for kind in type(thing).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        names.update(dict.fromkeys([slots] if isinstance(slots, str) else slots))
    return [(name, getattr(thing, name)) for name in names if hasattr(thing, name) and not name.startswith("__")]


def grown(core: Any, new: Any) -> list[str]:
    """Which tables of ``core`` are larger than those of ``new``, though they should not be."""
    before, after = sizes(new), sizes(core)
    return [
        f"{path}: {after[path]} instead of {before[path]}"
        for path in sorted(after)
        if path not in REMEMBERED and after[path] > before[path] + SLACK.get(path, 0)
    ]
