"""The race of the specification, at its size: 344 workers go to one, and their machines end late."""

from __future__ import annotations

from random import Random

import pytest

from shoal.messages import Options as TaskOptions
from shoal.sim import workload
from shoal.sim.acts import Act
from shoal.sim.leaving import shrink_to
from shoal.sim.options import Options
from shoal.sim.world import World


def shrink(seed: int, workers: int, tasks: int, shape: str, when: float, nannies: bool) -> World:
    options = Options.draw(
        seed, workers=workers, nthreads=1, tasks=tasks, submissions=1, faults=0, shape=shape, duration=(0.2, 0.9),
        calm=True, room=0, nannies=nannies, clients=1, actors=False, seceding=0.0, launching=0.0, flaky=0.0, broken=0.0,
        resources=False, restricted=False, executors=False, no_workers_timeout=None, delay=(0.0001, 0.05),
        bad_starts=0.0,
    )  # fmt: skip
    world = World(options, validate=workers < 100)
    world.acts = [Act(0.0, "pause", 0), *(Act(0.95 + n / 1000, "scatter", seed + n) for n in range(10))]
    rng = Random(seed)

    def submit() -> None:
        """All of it is wanted."""
        graph = workload.graph(shape, tasks, rng, "t0")
        world.oracle.expects(graph, world.fates.sequential(graph))
        world.submit(next(iter(world.clients.values())), graph, list(graph), TaskOptions())

    world.after(0.9, submit)
    world.after(when, lambda: shrink_to(world, next(iter(world.clients.values())), rng, 1, close=False))
    world.run()
    return world


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("nannies", [True, False])
def test_everything_but_one_leaves(seed: int, nannies: bool) -> None:
    """Every task runs once, no result is computed again, no scattered data is lost: the run itself asks for that."""
    world = shrink(seed, 40, 400, ["map", "tree", "shuffle"][seed], 1.3, nannies)
    assert world.counters["workers that retired"] == 39
    assert world.counters["machines that ended late"] == 39
    assert set(world.oracle.executed.values()) == {1}


def test_344_workers_go_to_one() -> None:
    """With 2,000 slow tasks under way."""
    world = shrink(1, 344, 2000, "map", 2.5, True)
    assert world.counters["workers that retired"] == 343
    assert world.counters["machines that ended late"] == 343
    assert len(world.oracle.executed) == 2000
    assert set(world.oracle.executed.values()) == {1}
    assert world.counters["scattered data"] >= 10
