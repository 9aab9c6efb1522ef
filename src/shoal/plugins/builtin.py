"""Plugins that users rely on: packages, files, directories, environment variables, logs."""

from __future__ import annotations

import inspect
import io
import logging
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

from shoal.errors import UsageError
from shoal.plugins.base import NannyPlugin, SchedulerPlugin, WorkerPlugin
from shoal.shell.loops import in_thread
from shoal.shell.scratch import alone
from shoal.shell.uploads import store_file, unpack

logger = logging.getLogger("shoal.plugins")


class InstallPlugin(SchedulerPlugin):
    """Run a function once on the scheduler, and in every nanny (or worker without one), now or when it joins.

    Parameters
    ----------
    install_fn
        Called without arguments. On one machine it runs in one process at a time.
    restart_workers
        Whether nannies restart their workers afterwards.
    """

    idempotent = True

    def __init__(self, install_fn: Callable[[], None], restart_workers: bool = False) -> None:
        self.install_fn, self.restart_workers = install_fn, restart_workers
        self.name = f"{type(self).__name__}-{getattr(install_fn, 'token', id(install_fn))}"

    async def start(self, scheduler: Any) -> None:
        """Install here, then everywhere."""
        self._scheduler = scheduler
        await _install_once(self.install_fn, self.name)
        await scheduler.register_nanny_plugin(
            _NannyInstall(self.install_fn, self.name, self.restart_workers), self.name
        )
        await scheduler.register_worker_plugin(_WorkerInstall(self.install_fn, self.name), self.name)

    async def close(self) -> None:
        """Those that join later install nothing any more."""
        for kind in ("nanny", "worker"):
            await self._scheduler.unregister_plugin(kind, self.name)


#: What was installed in this process, by name.
_installed: set[str] = set()


async def _install_once(function: Callable[[], None], name: str) -> None:
    """Install in this process, unless that was done; wait for others of this machine that install as well."""
    if name not in _installed:
        await in_thread(_install_alone, function)
        _installed.add(name)


def _install_alone(function: Callable[[], None]) -> None:
    with alone("installing"):
        function()


class _NannyInstall(NannyPlugin):
    def __init__(self, function: Callable[[], None], name: str, restart: bool) -> None:
        self.function, self.name, self.restart = function, name, restart

    async def setup(self, nanny: Any) -> None:
        await _install_once(self.function, self.name)


class _WorkerInstall(WorkerPlugin):
    def __init__(self, function: Callable[[], None], name: str) -> None:
        self.function, self.name = function, name

    async def setup(self, worker: Any) -> None:
        if not worker.has_nanny:
            await _install_once(self.function, self.name)


class _Command:
    """Runs a program that installs packages; picklable."""

    def __init__(self, command: list[str], token: str) -> None:
        self.command, self.token = command, token

    def __call__(self) -> None:
        command = [sys.executable if part == "{python}" else part for part in self.command]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:
            raise RuntimeError(f"{command[0]} could not be run: {error}") from error
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed with status {done.returncode}:\n{done.stderr[-4000:]}")
        logger.info("installed: %s", " ".join(command))


def _packages(packages: Any) -> list[str]:
    found = [packages] if isinstance(packages, str) else list(packages)
    if not found or not all(isinstance(name, str) and name for name in found):
        raise UsageError(f"packages must be names of packages, got {packages!r}")
    return found


class PipInstall(InstallPlugin):
    """Install packages with pip on the scheduler and on every machine.

    Parameters
    ----------
    packages
        As for ``pip install``.
    pip_options
        Further options, as ``["--upgrade"]``.
    restart_workers
        Whether workers are restarted, to have what they imported before replaced.
    """

    def __init__(
        self, packages: list[str], pip_options: list[str] | None = None, restart_workers: bool = False
    ) -> None:
        self.packages, self.pip_options = _packages(packages), list(pip_options or [])
        command = ["{python}", "-m", "pip", "install", *self.pip_options, *self.packages]
        super().__init__(_Command(command, "-".join(command[3:])), restart_workers)


class CondaInstall(InstallPlugin):
    """Install packages with conda into the environment that the scheduler and the workers run in.

    Parameters
    ----------
    packages
        As for ``conda install``.
    conda_options
        Further options, as ``["--update-deps"]``.
    restart_workers
        Whether workers are restarted afterwards.
    """

    def __init__(
        self, packages: list[str], conda_options: list[str] | None = None, restart_workers: bool = False
    ) -> None:
        self.packages, self.conda_options = _packages(packages), list(conda_options or [])
        conda = os.environ.get("CONDA_EXE", "conda")
        command = [conda, "install", "--yes", "--prefix", sys.prefix, *self.conda_options, *self.packages]
        super().__init__(_Command(command, "-".join(command[2:])), restart_workers)


class UploadFile(WorkerPlugin):
    """Put a file into the directory of every worker, and import it if it is a module.

    Parameters
    ----------
    filepath
        A ``.py``, ``.egg``, ``.zip`` or any other file.
    load
        Whether modules are imported (again).
    """

    def __init__(self, filepath: str | Path, load: bool = True) -> None:
        self.name = f"upload-{os.path.basename(filepath)}"
        self.filename, self.load = os.path.basename(filepath), load
        self.data = Path(filepath).read_bytes()

    def setup(self, worker: Any) -> None:
        """Store it."""
        store_file(Path(worker.local_directory), self.filename, self.data, self.load)


class SchedulerUploadFile(SchedulerPlugin):
    """As :class:`UploadFile`, for the scheduler."""

    def __init__(self, filepath: str | Path, load: bool = True) -> None:
        self.name = f"upload-{os.path.basename(filepath)}"
        self.filename, self.load = os.path.basename(filepath), load
        self.data = Path(filepath).read_bytes()

    async def start(self, scheduler: Any) -> None:
        """Store it."""
        store_file(Path(scheduler.local_directory), self.filename, self.data, self.load)


_SKIPPED: Final = (".git", ".github", ".pytest_cache", "tests", "docs")


class UploadDirectory(SchedulerPlugin):
    """Put a directory on the scheduler, on the workers, or on both.

    Parameters
    ----------
    path
        The directory. It arrives under its own name in the local directory of each nanny (or worker without one).
    restart_workers
        Whether workers are restarted afterwards.
    update_path
        Whether it is put on the path where modules are looked for.
    skip_words
        Directories of these names are left out.
    skip
        Functions of a path that say whether it is left out.
    mode
        ``"workers"``, ``"scheduler"`` or ``"all"``.
    """

    def __init__(
        self,
        path: str | Path,
        restart_workers: bool = False,
        update_path: bool = False,
        skip_words: Iterable[str] = _SKIPPED,
        skip: Iterable[Callable[[str], bool]] = (lambda name: os.path.splitext(name)[1] == ".pyc",),
        mode: str = "workers",
    ) -> None:
        if mode not in ("workers", "scheduler", "all"):
            raise UsageError(f"mode must be 'workers', 'scheduler' or 'all', got {mode!r}")
        root = Path(path).expanduser().resolve()
        if not root.is_dir():
            raise UsageError(f"path must be a directory, got {str(path)!r}")
        self.name = f"upload-directory-{root.name}"
        self.restart_workers, self.update_path, self.mode = restart_workers, update_path, mode
        self.data = _zipped(root, set(skip_words), list(skip))

    async def start(self, scheduler: Any) -> None:
        """Unpack it here, there, or both."""
        self._scheduler = scheduler
        if self.mode != "workers":
            unpack(Path(scheduler.local_directory), self.data, self.update_path)
        if self.mode != "scheduler":
            for_nannies = _NannyDirectory(self.data, self.update_path, self.restart_workers)
            await scheduler.register_nanny_plugin(for_nannies, self.name)
            await scheduler.register_worker_plugin(_WorkerDirectory(self.data, self.update_path), self.name)

    async def close(self) -> None:
        """Those that join later do not get it any more."""
        if self.mode != "scheduler":
            for kind in ("nanny", "worker"):
                await self._scheduler.unregister_plugin(kind, self.name)


def _zipped(root: Path, words: set[str], skip: list[Callable[[str], bool]]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for directory, names, files in os.walk(root):
            names[:] = sorted(name for name in names if name not in words)
            for name in sorted(files):
                file = Path(directory) / name
                if not any(left_out(str(file)) for left_out in skip):
                    archive.write(file, str(file.relative_to(root.parent)))
    return content.getvalue()


class _NannyDirectory(NannyPlugin):
    def __init__(self, data: bytes, update_path: bool, restart: bool) -> None:
        self.data, self.update_path, self.restart = data, update_path, restart

    def setup(self, nanny: Any) -> None:
        unpack(Path(nanny.local_directory), self.data, self.update_path)


class _WorkerDirectory(WorkerPlugin):
    """Tells a worker of the directory that its nanny has; one without a nanny unpacks it."""

    def __init__(self, data: bytes, update_path: bool) -> None:
        self.data, self.update_path = data, update_path

    def setup(self, worker: Any) -> None:
        if not worker.has_nanny:
            unpack(Path(worker.local_directory), self.data, self.update_path)
        elif self.update_path:
            known = {name.split("/")[0] for name in zipfile.ZipFile(io.BytesIO(self.data)).namelist()}
            for name in known:
                found = str(Path(worker.nanny_directory) / name)
                if found not in sys.path:
                    sys.path.insert(0, found)


class Environ(NannyPlugin):
    """Set environment variables of workers, which are restarted to have them.

    Parameters
    ----------
    environ
        Names and values.

    Examples
    --------
    >>> client.register_plugin(Environ({"OMP_NUM_THREADS": 4}))  # doctest: +SKIP
    """

    restart = True

    def __init__(self, environ: dict[str, Any] | None = None) -> None:
        self.environ = {str(name): str(value) for name, value in (environ or {}).items()}

    def setup(self, nanny: Any) -> None:
        """For the next process that the nanny starts, and all after it."""
        nanny.env.update(self.environ)


class ForwardLoggingPlugin(WorkerPlugin):
    """Publish what a logger of every worker is told under a topic.

    Parameters
    ----------
    logger_name
        The logger; ``""`` for all.
    level
        From which level on.
    topic
        See ``Client.subscribe_topic``.
    """

    def __init__(self, logger_name: str, level: int, topic: str) -> None:
        self.logger_name, self.level, self.topic = logger_name, level, topic
        self._handler: _Forwarder | None = None

    def setup(self, worker: Any) -> None:
        """Listen to the logger."""
        self._handler = _Forwarder(worker, self.topic, self.level)
        found = logging.getLogger(self.logger_name)
        self._before = found.level
        if found.getEffectiveLevel() > self.level:
            found.setLevel(self.level)
        found.addHandler(self._handler)

    def teardown(self, worker: Any) -> None:
        """Leave the logger as it was."""
        if self._handler is not None:
            found = logging.getLogger(self.logger_name)
            found.removeHandler(self._handler)
            found.setLevel(self._before)


class _Forwarder(logging.Handler):
    def __init__(self, worker: Any, topic: str, level: int) -> None:
        super().__init__(level)
        self._worker, self._topic = worker, topic

    def emit(self, record: logging.LogRecord) -> None:
        fields = {
            "name": record.name, "levelno": record.levelno, "levelname": record.levelname, "msg": record.getMessage(),
            "created": record.created, "pathname": record.pathname, "lineno": record.lineno,
            "funcName": record.funcName, "threadName": record.threadName, "worker": self._worker.address,
        }  # fmt: skip
        if record.exc_info:
            fields["exc_text"] = logging.Formatter().formatException(record.exc_info)
        self._worker.log_event(self._topic, fields)


class Callback(WorkerPlugin):
    """Calls a function on each worker.

    Parameters
    ----------
    function
        A parameter ``dask_worker`` receives the worker.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def setup(self, worker: Any) -> Any:
        """Call it."""
        wanted = "dask_worker" in inspect.signature(self.function).parameters
        return self.function(dask_worker=worker) if wanted else self.function()
