"""Progress, reports, profiles, spans, samples, metadata, prints and warnings: what users see of a computation."""

from __future__ import annotations

import asyncio
import sys
import time
import warnings
from pathlib import Path

import dask
import dask.array as da
import pytest

import shoal
from shoal import (
    Client,
    LocalCluster,
    MemorySampler,
    Scheduler,
    Worker,
    get_task_metadata,
    get_task_stream,
    performance_report,
    progress,
    span,
    wait,
)
from shoal.errors import UsageError
from tests.integration.functions import inc
from tests.integration.helpers import until


def _slow(x: int) -> int:
    end = time.perf_counter() + 0.05
    while time.perf_counter() < end:
        pass
    return x


def _fail(x: int) -> None:
    raise ValueError(x)


def test_progress_in_a_terminal(client: Client, capsys) -> None:
    """A bar for each prefix, with what failed; it returns when all is done."""
    futures = client.map(_slow, range(6))
    total = client.submit(sum, futures)
    progress(total)
    assert total.done()
    told = capsys.readouterr().out
    assert "slow" in told
    assert "6/6" in told
    assert "1/1" in told
    progress(client.map(_fail, range(3)), multi=False)
    told = capsys.readouterr().out
    assert "3 failed" in told
    assert "all tasks" in told
    progress(da.ones(8, chunks=2).persist(), total, complete=False)
    with pytest.raises(UsageError, match="group_by"):
        progress(total, group_by="nonsense")
    with pytest.raises(UsageError, match="no futures"):
        progress([])


def test_progress_in_a_notebook(client: Client) -> None:
    """It shows itself, and goes on until all is done, in the background."""
    shown = progress(client.map(_slow, range(6)), notebook=True, interval="20 ms")
    until(lambda: "slow" in shown._repr_html_())
    until(lambda: shown.done)
    assert shown.error is None
    assert "6&thinsp;/&thinsp;6" in shown._repr_html_()
    assert "slow 6/6" in repr(shown)


def test_a_profile_says_where_the_time_goes(client: Client) -> None:
    """By prefix, by worker, as a page."""
    client.gather(client.map(_slow, range(20)))
    tree = client.profile(key="slow")
    assert tree["count"] > 20
    names = {child["description"]["name"] for child in tree["children"].values()}
    assert "_slow" in names
    by_worker = client.profile(merge_workers=False)
    assert set(by_worker) == set(client.scheduler_info()["workers"])
    assert client.profile(key="nothing")["count"] == 0
    _, page = client.profile(plot=True)
    assert "_slow" in page._repr_html_()
    with pytest.raises(UsageError, match="py-spy"):
        client.profile(server=True)


def test_a_report_of_a_block(client: Client, tmp_path: Path) -> None:
    """One file with the tasks, the stream, the profile, the code."""
    path = tmp_path / "report.html"
    with performance_report(path):
        client.gather(client.map(_slow, range(10)))
        wait(client.map(_fail, range(2)))
    text = path.read_text()
    for expected in ("_slow", "<svg", "Profile of the workers", "client.gather(client.map", "of them failed"):
        assert expected in text
    assert "<script" not in text
    assert "<link" not in text


def test_a_task_stream_as_a_page(client: Client, tmp_path: Path) -> None:
    """Drawn, saved; for a block, too."""
    with get_task_stream(plot="save", filename=str(tmp_path / "one.html")) as stream:
        client.gather(client.map(_slow, range(4)))
    assert len(stream.data) == 4
    assert "<rect" in (tmp_path / "one.html").read_text()
    rows, page = client.get_task_stream(plot=True)
    assert len(rows) == 4
    assert "4 executions" in page._repr_html_()


def test_metadata_of_the_tasks_of_a_block(client: Client) -> None:
    """Where and when they ran, and how they ended."""
    with get_task_metadata() as tasks:
        good, bad = client.submit(_slow, 1), client.submit(_fail, 1)
        wait([good, bad])
    assert tasks.state == {good.key: "memory", bad.key: "erred"}
    assert tasks.metadata[good.key]["stop_time"] - tasks.metadata[good.key]["start_time"] >= 0.05
    assert tasks.metadata[good.key]["worker"] in client.scheduler_info()["workers"]


def test_spans_count_what_is_inside_of_them(client: Client) -> None:
    """They nest, for calls and for graphs; what failed is counted, too."""
    with span("outer") as outer:
        client.gather(client.map(_slow, range(3)))
        with span("inner", "most"):
            wait(client.map(_fail, range(2)))
            dask.compute(da.ones(8, chunks=2).sum())
    found = {tuple(one["name"]): one for one in client.spans()}
    assert set(found) == {("outer",), ("outer", "inner"), ("outer", "inner", "most")}
    assert found["outer",]["id"] == outer
    assert found["outer", "inner", "most"]["failed"] == 2
    assert found["outer", "inner", "most"]["parent"] == found["outer", "inner"]["id"]
    assert found["outer",]["prefixes"]["slow"][0] == 3
    assert found["outer",]["seconds"] >= 0.15
    assert found["outer",]["tasks"] == 3 + found["outer", "inner", "most"]["tasks"]
    assert found["outer", "inner", "most"]["tasks"] > 2
    with pytest.raises(UsageError, match="at least one name"), span():
        pass
    shown = progress(client.map(inc, range(3)), notebook=True, group_by="spans")
    until(lambda: shown.done)
    assert "no span" in repr(shown)


def _hold(nbytes: int) -> None:
    held = bytearray(nbytes)
    time.sleep(2.5)
    del held


def test_samples_of_memory(client: Client) -> None:
    """Under labels, as a data frame."""
    sampler = MemorySampler()
    with sampler.sample("one", interval=0.05):
        client.submit(_hold, 300_000_000).result()
    with sampler.sample("other", measure="managed", interval=0.05):
        time.sleep(0.3)
    sizes = [size for _, size in sampler.samples["one"]]
    assert max(sizes) - min(sizes) > 200e6
    frame = sampler.to_pandas(align=True)
    assert list(frame.columns) == ["one", "other"]
    assert frame.index[0].total_seconds() == 0
    with pytest.raises(UsageError, match="measure"):
        sampler.sample(measure="nonsense")


def _say(text: str) -> None:
    shoal.print(text, 1, sep="-", end="!\n")
    shoal.print("wrong", file=sys.stderr)
    shoal.warn("careful", RuntimeWarning)


def test_what_tasks_print_reaches_the_user(cluster: LocalCluster, client: Client, capfd) -> None:
    """Once for each process, however many clients it has; warnings, too."""
    with Client(cluster, set_as_default=False), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        client.submit(_say, "hello").result()
        until(lambda: any("careful" in str(one.message) for one in caught))
        time.sleep(0.2)
    assert sum("careful" in str(one.message) for one in caught) == 1
    told = capfd.readouterr()
    assert told.out.count("hello-1!\n") == 1
    with pytest.warns(UserWarning, match="here"):
        shoal.warn("here")


def test_versions_and_hardware(client: Client) -> None:
    """Of all processes; those of one cluster are the same."""
    found = client.get_versions(check=True, packages=["click", "no-such-package"])
    assert set(found) == {"scheduler", "workers", "client"}
    assert found["client"]["packages"]["click"]
    assert found["scheduler"]["packages"]["no-such-package"] is None
    assert len(found["workers"]) == 2
    measured = client.benchmark_hardware()
    assert set(measured) == {"disk", "memory", "network"}
    assert all(rate > 0 for rates in measured.values() for rate in rates.values())
    assert client.submit(inc, 1).result() == 2
    assert not any("benchmark" in key for keys in client.has_what().values() for key in keys)


async def _awaited(path: Path) -> None:
    async with (
        Scheduler() as scheduler,
        Worker(scheduler.address, nthreads=2),
        Client(scheduler.address, asynchronous=True) as client,
    ):
        async with performance_report(path), get_task_metadata() as tasks:
            await client.gather(client.map(inc, range(3)))
        assert len(tasks.state) == 3
        await progress(client.map(_slow, range(3)), notebook=False)
        sampler = MemorySampler()
        async with sampler.sample("x", interval=0.02):
            await asyncio.sleep(0.1)
        assert sampler.samples["x"]
        assert (await client.profile())["count"] > 0
        assert (await client.get_versions())["workers"]


def test_all_of_it_is_awaited(tmp_path: Path) -> None:
    """With an asynchronous client."""
    asyncio.run(_awaited(tmp_path / "report.html"))
    assert "<svg" in (tmp_path / "report.html").read_text()
