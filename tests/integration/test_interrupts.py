"""Ctrl-C, and the end of the interpreter, at any moment while a cluster starts or closes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.integration.surroundings import ROOT, marked

PROGRAM = """
import os, sys
import dask
import shoal
shoal.LocalCluster, shoal.Client  # an interrupt of an import is the program's own affair

def say(word):
    os.write(3, word.encode() + b'\\n')

def plain(**kwargs):
    say('starting')
    with shoal.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, **kwargs) as cluster:
        with shoal.Client(cluster) as client:
            client.submit(sum, [1, 2]).result(timeout=20)
            say('closing')

def threads():
    plain(processes=False)

def client_alone():
    say('starting')
    client = shoal.Client(n_workers=2, threads_per_worker=1, dashboard_address=None)
    client.submit(sum, [1, 2]).result(timeout=20)
    say('closing')
    client.close()

def in_asyncio():
    import asyncio
    asyncio.run(on_loop())

async def on_loop():
    say('starting')
    options = {'n_workers': 2, 'threads_per_worker': 1, 'dashboard_address': None, 'asynchronous': True}
    async with shoal.LocalCluster(**options) as cluster, shoal.Client(cluster, asynchronous=True) as client:
        await client.submit(sum, [1, 2])
        say('closing')

if __name__ == '__main__':
    globals()[sys.argv[1]]()
    say('closed')
"""
KINDS = ("plain", "threads", "client_alone", "in_asyncio")

#: Ends the main thread while another one starts a cluster.
EXITING = """
import os, sys, threading, time
import shoal

if __name__ == '__main__':
    threading.Thread(target=lambda: shoal.LocalCluster(n_workers=2, dashboard_address=None), daemon=DAEMON).start()
    time.sleep(float(sys.argv[1]))
    HOW
"""

#: Leaves everything open.
CARELESS = """
import shoal
if __name__ == '__main__':
    cluster = shoal.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)
    client = shoal.Client(cluster)
    future = client.submit(sum, [1, 2])
    print(future.result(timeout=20))
    later = client.submit(__import__('time').sleep, 60)
"""


@pytest.fixture
def here() -> Iterator[Path]:
    found = Path(tempfile.mkdtemp(prefix="shoal-interrupts-", dir="/tmp"))
    yield found
    shutil.rmtree(found)


class Program:
    """A program in a process, of which nothing may be left."""

    def __init__(self, here: Path, code: str, *arguments: str) -> None:
        self._mark = uuid.uuid4().hex
        self._here = here / self._mark
        self._here.mkdir()
        (self._here / "program.py").write_text(code)
        env = {**os.environ, "ROW": self._mark, "TMPDIR": str(self._here), "PYTHONPATH": str(ROOT / "src")}
        words, theirs = os.pipe()
        self.words = os.fdopen(words)
        command = ["bash", "-c", f'exec 3>&{theirs}; exec "$@"', "x", sys.executable, str(self._here / "program.py")]
        self.process = subprocess.Popen(
            [*command, *arguments],
            env=env, pass_fds=[theirs], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        os.close(theirs)

    def wait_for(self, word: str) -> None:
        for line in self.words:
            if line.strip() == word:
                return

    def end(self) -> tuple[str, list[str]]:
        """What it printed to stderr once it has ended, and what is wrong with that."""
        wrong = []
        try:
            _, errors = self.process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            wrong.append("it did not end")
            self.process.kill()
            _, errors = self.process.communicate()
        self.words.close()
        text = errors.decode(errors="replace")
        deadline = time.monotonic() + 5
        while (left := marked(self._mark)) and time.monotonic() < deadline:
            time.sleep(0.05)  # a killed program's processes notice that by their pipes
        if left:
            wrong.append(f"processes are left: {[' '.join(one.cmdline())[:60] for one in left]}")
            for one in left:
                one.kill()
        files = [str(path) for path in self._here.rglob("*") if not path.is_dir() and path.name != "program.py"]
        if files:
            wrong.append(f"files are left: {files}")
        bad = ("Exception ignored", "was destroyed", "never retrieved", "During handling", "direct cause", "ERROR")
        wrong += [f"it printed {words!r}" for words in bad if words in text]
        return text, wrong


def interrupt(here: Path, kind: str, word: str, delay: float, times: int = 1) -> list[str]:
    """Interrupt a program ``delay`` seconds after it said ``word``; return what was wrong."""
    program = Program(here, PROGRAM, kind)
    program.wait_for(word)
    time.sleep(delay)
    for _ in range(times):
        program.process.send_signal(signal.SIGINT)
        time.sleep(0.05 if times > 1 else 0)
    text, wrong = program.end()
    if kind == "in_asyncio":  # asyncio itself tells of an interrupt in two parts
        wrong = [one for one in wrong if "During handling" not in one]
    if text.count("Traceback") > 1 + (kind == "in_asyncio"):
        wrong.append("it printed more than one traceback")
    if text and "KeyboardInterrupt" not in text:
        wrong.append("it printed something else than an interrupt")
    return [f"{kind}: {word} + {delay:.3f} s, {times}: {', '.join(wrong)}\n{text}"] if wrong else []


MOMENTS = [
    *((KINDS[n % 4], "starting", n * 0.09) for n in range(9)),
    *((KINDS[n % 4], "closing", n * 0.015) for n in range(6)),
]


def test_an_interrupt_at_any_moment_ends_the_program_cleanly(here: Path) -> None:
    """Within seconds, with one traceback at most; no process and no file is left."""
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda moment: interrupt(here, *moment), MOMENTS))
    assert [one for each in found for one in each] == []


def test_an_impatient_user_leaves_nothing_either(here: Path) -> None:
    """Who interrupts three times while it starts or closes may see more tracebacks, but no process is left."""
    moments = [("starting", 0.3), ("closing", 0.0)]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda moment: interrupt(here, "plain", *moment, 3), moments))
    wrong = [one for each in found for one in each]
    assert [one for one in wrong if "are left" in one or "did not end" in one] == []


@pytest.mark.parametrize("how", ["pass", "sys.exit(3)", "os._exit(3)", "1 / 0"])
@pytest.mark.parametrize("daemon", [True, False])
def test_the_interpreter_may_end_while_a_cluster_starts(here: Path, how: str, daemon: bool) -> None:
    """Nothing is printed but the program's own error; nothing is left."""
    code = EXITING.replace("HOW", how).replace("DAEMON", str(daemon))
    programs = [Program(here, code, str(delay)) for delay in (0.0, 0.3)]
    for program in programs:
        text, wrong = program.end()
        assert wrong == [], text
        assert ("ZeroDivisionError" in text) == (how == "1 / 0"), text
        assert text.count("Traceback") == (how == "1 / 0"), text


def test_a_program_may_end_without_closing_anything(here: Path) -> None:
    """While a task runs; nothing is printed and nothing is left."""
    text, wrong = Program(here, CARELESS).end()
    assert (text, wrong) == ("", [])
