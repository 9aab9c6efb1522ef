"""A few hundred simulated clusters: all right, all kinds of events reached, the same under every hash seed."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from click.testing import CliRunner

from shoal.cli import main
from shoal.sim import campaign
from shoal.sim.options import Options
from shoal.sim.world import run

#: Kinds of events that must keep happening, with how often at least in the runs below.
REACHED = {
    "scatter": 100, "scattered data": 150, "scattered data that was lost": 5, "retire": 150, "shrink": 60,
    "lifetime": 80, "replicate": 40, "rebalance": 40, "workers that retired": 300, "machines that ended late": 30,
    "workers that could not retire": 80,
    "submit": 500, "results": 1500, "executions": 4000, "transfers": 500, "crash": 40, "join": 40, "cut": 30,
    "interruption": 50, "messages said again": 50, "redefine": 20,
    "half-open link": 5, "slow worker": 30, "slow link": 30, "deaf worker": 30, "stopped worker": 30, "pause": 40,
    "lost heartbeats": 10, "memory": 5, "nanny restart": 5, "nanny death": 5,
    "nanny orders": 10, "nanny leaves": 5, "restart of some": 30, "broken files": 20, "workers that were revived": 50,
    "starts that failed": 20, "workers that were silent for too long": 10, "assignments given back": 10,
    "no worker for too long": 10, "actors that were lost": 5, "tasks that launch tasks": 100,
    "tasks that were given up": 3, "spilling": 40, "other resources": 8,
    "unreachable peers": 5, "partial answers": 3, "release": 80, "cancel": 50, "cancellations": 50, "resubmit": 80,
    "retry": 30, "vanish": 20, "restart": 10, "tasks that raise": 100, "reschedules": 50, "errors": 80, "thefts": 20,
    "thefts refused": 20, "seceded tasks": 200, "rejoined tasks": 50, "changes of mind": 50,
    "values that were forgotten": 5, "late reports": 30, "results that were lost": 50,
    "parted workers": 30, "transfers over a cut": 5, "values by way of the scheduler": 5, "machines that vanished": 10,
    "silent cuts (both)": 10, "silent cuts (up)": 5, "silent cuts (down)": 5,
    "submissions with resources": 50, "submissions to one host": 50,
}  # fmt: skip


def test_a_few_hundred_seeds_are_right_and_reach_what_they_should() -> None:
    """Each breaks nothing; together they see everything."""
    report = campaign.run_batch(range(500), {})
    assert not report.broken, campaign.story(Options.draw(min(report.broken)))
    missed = {what: report.counters[what] for what, least in REACHED.items() if report.counters[what] < least}
    assert not missed


def test_larger_clusters() -> None:
    """Twenty workers, hundreds of tasks, many misfortunes."""
    report = campaign.run_batch(range(5), {"workers": 20, "tasks": 300, "faults": 40})
    assert not report.broken, report.broken


@pytest.mark.parametrize("hash_seed", ["0", "12345"])
def test_a_seed_is_the_same_run_under_every_hash_seed(hash_seed: str) -> None:
    """To the last message."""
    code = (
        "from shoal.sim.options import Options; from shoal.sim.world import run\n"
        "print([run(Options.draw(seed))[0].trace for seed in range(40)])"
    )
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == str([run(Options.draw(seed))[0].trace for seed in range(40)])


def test_a_run_that_breaks_is_told_short(monkeypatch) -> None:
    """What broke, the acts that matter and no others, and what was said last."""
    from shoal.core.worker.reactor import WorkerCore

    real = WorkerCore._stored
    monkeypatch.setattr(WorkerCore, "_stored", lambda self, record: None)
    report = campaign.run_batch(range(200), {})
    assert report.broken
    options = Options.draw(min(report.broken))
    told = campaign.story(options)
    assert f"seed {options.seed}" in told
    assert "what had to happen" in told
    monkeypatch.setattr(WorkerCore, "_stored", real)
    assert "runs clean" in campaign.story(options)


def test_the_command() -> None:
    """A range, one seed, and a range that is none."""
    runner = CliRunner()
    done = runner.invoke(main, ["sim", "--seeds", "0:30", "--jobs", "2"])
    assert done.exit_code == 0, done.output
    assert "all 30 runs were right" in done.output
    assert "runs clean" in runner.invoke(main, ["sim", "--seed", "3", "--faults", "2"]).output
    assert runner.invoke(main, ["sim", "--seeds", "5"]).exit_code == 2
