"""What users can ask: stacks, streams, dumps."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from shoal import Client, DumpArtefact, KilledWorker, get_task_stream
from shoal.cli import main
from shoal.errors import UsageError
from tests.integration.functions import fail, inc, leave, slow_inc, warn
from tests.integration.helpers import until


def linger(seconds: float) -> None:
    time.sleep(seconds)


def test_call_stack(client: Client) -> None:
    """The line in which a task is, by worker and key; nothing of tasks that do not run."""
    slow = client.submit(linger, 1.0)
    waiting = client.submit(str, slow)
    until(lambda: "time.sleep(seconds)" in str(client.call_stack()))
    found = client.call_stack(slow)
    ((address, stacks),) = found.items()
    assert address in client.nthreads()
    assert list(stacks) == [slow.key]
    assert "time.sleep(seconds)" in stacks[slow.key][-1]
    assert client.call_stack(keys=[waiting.key]) == {}
    assert waiting.result(20) == "None"
    assert client.call_stack() == {}


def test_the_stream_of_tasks(client: Client) -> None:
    """What ran where and when, also what failed; by time and by number."""
    before = time.time()
    with get_task_stream() as stream:
        good = client.map(slow_inc, range(6), pure=False)
        bad = client.submit(fail, 1)
        assert client.gather(good) == list(range(1, 7))
        with pytest.raises(ValueError, match="no 1"):
            bad.result(20)
    rows = {row["key"]: row for row in stream.data}
    assert set(rows) == {future.key for future in [*good, bad]}
    assert rows[bad.key]["status"] == "error"
    for future in good:
        row = rows[future.key]
        (span,) = row["startstops"]
        assert before < span["start"] < span["stop"] < time.time() + 1
        assert row["worker"] in client.nthreads()
        assert (row["status"], row["type"], row["thread"]) == ("OK", "int", 0)
    assert len(client.get_task_stream(count=2)) == 2
    assert client.get_task_stream(stop=before) == []
    assert len(client.get_task_stream(start="1 hour")) == 7
    with pytest.raises(UsageError, match="start"):
        client.get_task_stream(start=[])


@pytest.mark.parametrize("format", ["msgpack", "yaml"])
def test_a_dump_is_read_without_the_cluster(client: Client, tmp_path: Path, format: str) -> None:
    """States, stories, reasons."""
    done = client.submit(inc, 1)
    assert done.result(20) == 2
    stuck = client.submit(inc, done, resources={"GPU": 1})
    after = client.submit(inc, stuck)
    until(lambda: "none of 2 workers has {'GPU': 1" in client.why(after))
    name = client.dump_cluster_state(str(tmp_path / "dump"), format=format)
    client.close()
    dump = DumpArtefact.from_url(name)
    assert set(dump.scheduler_tasks_in_state("memory")) == {done.key}
    assert set(dump.worker_tasks_in_state("memory")) == {done.key}
    assert "GPU" in dump.why(after.key)
    assert "is done" in dump.why(done.key)
    assert dump.scheduler_story(done.key)[done.key][-1][3] == "memory"
    assert dump.worker_story(done.key)[done.key]
    assert dump.missing_workers() == []
    assert dump["scheduler"]["prefixes"]["inc"]["finished"] == 1
    told = CliRunner().invoke(main, ["why", after.key, "--dump", name])
    assert told.exit_code == 0
    assert "GPU" in told.output


def test_dumps_that_are_none(client: Client, tmp_path: Path) -> None:
    """Each is refused, with what is wrong."""
    with pytest.raises(UsageError, match="format"):
        client.dump_cluster_state(format="json")
    short = DumpArtefact.from_url(client.dump_cluster_state(str(tmp_path / "short"), exclude=["story"]))
    assert "story" not in short["scheduler"]
    with pytest.raises(UsageError, match="'story'"):
        short.why("x")
    (tmp_path / "bad.msgpack.gz").write_bytes(b"no")
    for name in ("bad.msgpack.gz", "bad.txt"):
        with pytest.raises(UsageError, match="bad"):
            DumpArtefact.from_url(tmp_path / name)
    told = CliRunner().invoke(main, ["why", "x", "--dump", str(tmp_path / "none.yaml")])
    assert (told.exit_code, "none.yaml" in told.output) == (1, True)


def test_from_a_coroutine(cluster) -> None:
    """The same, awaited."""

    async def ask() -> None:
        async with Client(cluster, asynchronous=True) as client, get_task_stream(client) as stream:
            await client.submit(inc, 1)
            assert await client.call_stack() == {}
        assert len(stream.data) == 1

    asyncio.run(ask())


def test_logs(client: Client) -> None:
    """Of the scheduler, of workers with what tasks log themselves, of nannies with the death of a worker."""
    assert sum("joined from" in text for _, text in client.get_scheduler_logs()) == 2
    assert len(client.get_scheduler_logs(1)) == 1
    first, second = client.nthreads()
    client.submit(warn, "mind the gap", workers=[first]).result(20)
    logs = client.get_worker_logs()
    assert [level for level, text in logs[first] if "mind the gap" in text] == ["WARNING"]
    assert not any("mind the gap" in text for _, text in logs[second])
    assert set(client.get_worker_logs(workers=[second])) == {second}
    with pytest.raises(KilledWorker):
        client.submit(leave, 3, workers=[first], allow_other_workers=True).result(40)
    until(lambda: len(client.nthreads()) == 2)
    told = [text for lines in client.get_nanny_logs().values() for _, text in lines]
    assert any("exited with status 3" in text for text in told)
