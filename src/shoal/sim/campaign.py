"""Many runs: over several processes, counted, and those that break told as short as can be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import Any

from shoal.sim.options import Options
from shoal.sim.world import World, run

#: Seeds that one process takes at a time.
_BATCH = 25


@dataclass
class Report:
    """What a campaign found."""

    runs: int = 0
    steps: int = 0
    #: How often each kind of event happened.
    counters: Counter[str] = field(default_factory=Counter)
    #: What broke, by seed.
    broken: dict[int, str] = field(default_factory=dict)

    def add(self, other: Report) -> None:
        self.runs += other.runs
        self.steps += other.steps
        self.counters.update(other.counters)
        self.broken.update(other.broken)


def run_batch(seeds: range, given: dict[str, Any], prepare: Callable[[], None] | None = None) -> Report:
    """Run some seeds in this process."""
    if prepare is not None:
        prepare()
    report = Report()
    for seed in seeds:
        world, broken = run(Options.draw(seed, **given))
        report.runs += 1
        report.steps += world.steps
        report.counters.update(world.counters)
        if broken:
            report.broken[seed] = broken
    return report


def campaign(seeds: range, given: dict[str, Any], jobs: int) -> Iterator[Report]:
    """Run all seeds; yield a report for each batch as it ends."""
    batches = [seeds[at : at + _BATCH] for at in range(0, len(seeds), _BATCH)]
    if jobs == 1:
        for batch in batches:
            yield run_batch(batch, given)
        return
    with ProcessPoolExecutor(jobs) as pool:
        for done in as_completed([pool.submit(run_batch, batch, given) for batch in batches]):
            yield done.result()


def shrink(options: Options) -> tuple[World, str, frozenset[int]]:
    """Leave out acts, one after another, as long as the same kind of thing still breaks."""
    skip: frozenset[int] = frozenset()
    world, broken = run(options)
    kind = _kind(broken)
    count = options.submissions + options.faults
    for number in reversed(range(count)):
        fewer, what = run(options, skip | {number})
        if what and _kind(what) == kind:
            skip, world, broken = skip | {number}, fewer, what
    return world, broken, skip


def _kind(broken: str) -> str:
    """What broke, without the names in it."""
    return broken.strip().splitlines()[-1].split(":")[0] if broken else ""


def story(options: Options) -> str:
    """A failing seed, told: what broke, what had to happen for it, and the last that was said."""
    world, broken, skip = shrink(options)
    if not broken:
        runs = max(1, world.counters["executions"])
        return (
            f"seed {options.seed} runs clean: {world.steps:,} events, {runs:,} executions, "
            f"{1e6 * world.scheduler_seconds / runs:.1f} µs of the scheduler's for each\n{options}"
        )
    acts = "\n".join(f"  {act}" for act in world.acts)
    said = "\n".join(f"  {line[:600]}" for line in list(world.told)[-40:])
    return (
        f"seed {options.seed}: {broken}\n\ncircumstances: {options}\n\n"
        f"what had to happen ({len(skip)} other acts left out):\n{acts}\n\nthe last that was said:\n{said}"
    )
