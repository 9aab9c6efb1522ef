"""A state that was saved and loaded answers as the one that it was made of."""

from __future__ import annotations

import random

import msgspec
import pytest

from shoal.core.scheduler import explain
from shoal.core.scheduler.invariants import check
from shoal.core.scheduler.snapshot import load, save
from shoal.sim.workload import graph
from tests.machines.harness import Cluster


@pytest.mark.parametrize("seed", range(12))
def test_at_any_moment(seed: int) -> None:
    """Through bytes and back: all indexes agree, and every task is explained in the same words."""
    rng = random.Random(seed)
    cluster = Cluster(2, seed=seed)
    cluster.failing["t0-3"] = 1
    tasks = graph(rng.choice(["random", "tree", "chains", "map"]), 30, rng, "t0")
    cluster.submit(tasks, list(tasks)[::3])
    cluster.submit({"gpu": []}, ["gpu"], resources={"GPU": 1.0})
    for _ in range(rng.randint(0, 120)):
        cluster.step()
    state = cluster.scheduler.state
    loaded = load(msgspec.msgpack.decode(msgspec.msgpack.encode(save(state))))
    loaded.functions = state.functions  # they are not saved
    check(loaded)
    for key in state.tasks:
        assert explain.why(loaded, key, cluster.now) == explain.why(state, key, cluster.now)
    assert save(loaded) == save(state) | {"now": loaded.now}
