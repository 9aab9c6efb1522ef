"""The worker process: ``python -m shoal.programs.worker_main REPORT OPTIONS RECORDER``, or forked (:func:`become`).

The arguments are descriptors: what it says of itself, its options, and the memory in which its threads note what they
run. It ends when its stdin closes: no orphans, whatever way its nanny ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import gc
import json
import logging
import os
import random
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import Any, Final, NoReturn

from shoal import config
from shoal.errors import StartError
from shoal.programs.joining import SUPERVISION, Worker, retire_timeout
from shoal.programs.preparing import expect_tasks, take_title
from shoal.programs.worker import Supervision
from shoal.security import unpack
from shoal.shell import limits, serialize, standard
from shoal.shell.logs import print_from
from shoal.shell.loops import new_event_loop

#: Signals that wait until the process is ready for them.
_LATER: Final = {signal.SIGINT, signal.SIGTERM}
#: Open files of a worker beside those that its nanny gives it.
_FILES: Final = 16


def main() -> None:
    """Run a worker in a process of its own."""
    standard.take_over()
    signal.pthread_sigmask(signal.SIG_SETMASK, _LATER)
    die_with_parent()
    _run(*(int(descriptor) for descriptor in sys.argv[1:4]))


def become(descriptors: Sequence[int], env: dict[str, str] | None = None) -> NoReturn:
    """Run a worker in this process, which was forked a moment ago and is left for nothing else."""
    status = 1
    try:
        die_with_parent()
        os.setpgid(0, 0)
        stdin, stderr, *kept = descriptors
        os.dup2(stdin, 0)
        os.dup2(stderr, 2)
        signal.set_wakeup_fd(-1)
        for number in signal.valid_signals():
            if callable(signal.getsignal(number)):
                signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, _LATER)
        _close_all_but({0, 1, 2, *kept})
        if env is not None:
            os.environ.clear()
            os.environ.update(env)
        asyncio._set_running_loop(None)
        for name in [None, *logging.Logger.manager.loggerDict]:
            logging.getLogger(name).handlers.clear()  # they keep the lines of the process that forked
        random.seed()
        if "numpy" in sys.modules:
            sys.modules["numpy"].random.seed()
        _run(*kept)
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _close_all_but(kept: set[int]) -> None:
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in kept:
            with contextlib.suppress(OSError):
                os.close(int(name))


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent dies, even while a task holds the GIL for ever."""
    if sys.platform == "linux":
        import ctypes

        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def _run(report: int, given: int, recorder: int) -> None:
    try:
        limits.require_more(_FILES, "a worker")
    except StartError as error:
        _say(report, {"error": str(error)})
        raise SystemExit(1) from error
    with open(given, "rb") as file:
        file.seek(0)
        options = json.loads(file.read())
    config.inherit(options["config"])
    config.extend_import_path(options["sys_path"])
    print_from(options["worker"].pop("silence_logs", None) or logging.WARNING)
    faulthandler.enable(all_threads=False)
    take_title(f"shoal worker {options['worker']['name']}")
    expect_tasks()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(_serve(options, report, recorder))


async def _serve(options: dict[str, Any], report: int, recorder: int) -> None:
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    leaving: set[asyncio.Task[None]] = set()
    worker: Worker | None = None

    def leave() -> None:
        """SIGTERM comes from outside: the worker retires, and its nanny decides whether another takes its place."""
        leaving.add(loop.create_task(_leave(worker, told)))

    loop.add_signal_handler(signal.SIGINT, told.set)  # from the nanny
    loop.add_signal_handler(signal.SIGTERM, leave)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    pipe = asyncio.StreamReader()
    lifeline = os.fdopen(0, "rb", buffering=0, closefd=False)
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(pipe), lifeline)
    orphaned = loop.create_task(pipe.read())
    orphaned.add_done_callback(lambda task: told.set())
    told_to_end = loop.create_task(told.wait())
    try:
        worker = _make(options, report, recorder)
        starting = loop.create_task(worker.start())
        await asyncio.wait([starting, told_to_end], return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            await starting
            worker.logs.attach("")  # and what tasks log themselves
            finished = loop.create_task(worker.finished())
            await asyncio.wait([told_to_end, finished], return_when=asyncio.FIRST_COMPLETED)
            finished.cancel()
        else:
            starting.cancel()
            await asyncio.wait([starting])
        status = worker.exit_status if not told.is_set() else 0
        await worker.close("the process was told to end")
        if status:
            sys.stderr.write(f"worker ended: {worker.end}\n")
            raise SystemExit(status)
    except Exception as error:
        text = str(error) if isinstance(error, StartError) else f"could not start: {type(error).__name__}: {error}"
        _say(report, {"error": text})
        raise
    finally:
        told_to_end.cancel()
        for task in leaving:
            task.cancel()
        orphaned.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await orphaned
        transport.close()


async def _leave(worker: Worker | None, told: asyncio.Event) -> None:
    if worker is not None and worker.status == "running":
        await worker.program.retire("its process was told to end (SIGTERM)", retire_timeout(), restart=True)
    told.set()


def _make(options: dict[str, Any], report: int, recorder: int) -> Worker:
    """The worker that the options ask for, which finds here what its nanny gave it."""
    given = options["supervision"]
    secret, listen = unpack(given.pop("secret")), tuple(given.pop("listen"))
    config.hide_secret(secret)
    SUPERVISION.set(Supervision(secret=secret, listen=listen, report=report, recorder=recorder, **given))
    kind, further = Worker, {}
    if options["worker_class"]:
        named, further = serialize.loads_text(options["worker_class"])
        kind = named or Worker
    return kind(given["scheduler"][0], **options["worker"], **further)


def _say(descriptor: int, what: dict[str, Any]) -> None:
    """Tell the nanny."""
    with contextlib.suppress(BrokenPipeError):
        os.write(descriptor, json.dumps(what).encode() + b"\n")


if __name__ == "__main__":
    main()
