"""``import distributed`` as shoal: what is found, what is not, and how that is said."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

from shoal.compat.names import MODULES

Run = Callable[..., str]


@pytest.mark.parametrize("module", MODULES)
def test_every_name_of_the_table_is_there(module: str) -> None:
    """In shoal, or in the library that it is taken from."""
    for name, place in MODULES[module].items():
        source, _, attribute = place.partition(":")
        found = import_module(source)
        if attribute:
            assert hasattr(found, attribute), name


def test_a_program_finds_shoal_everywhere(run: Run) -> None:
    """By each way of importing, in the workers too, and what is not there is said."""
    told = run(
        """
import distributed, dask, dask.distributed, distributed.client as dc
from distributed import get_worker, wait, as_completed, Lock
from distributed.utils import format_bytes, thread_state
from distributed.worker_client import worker_client
import distributed.worker_client
assert distributed.Client is dask.distributed.Client is dc.Client is Client, "one class"
assert Client.__module__.startswith("shoal"), Client.__module__
assert callable(distributed.worker_client)
assert distributed.__version__ == dask.__version__
assert dask.base.get_scheduler() is not None
for code, expected in [
    ("from distributed import nonsense", "no distributed.nonsense"),
    ("from distributed.client import nonsense", "no distributed.client.nonsense"),
    ("import distributed.nonsense", "no distributed.nonsense"),
    ("from dask.distributed import nonsense", "nonsense"),
]:
    try:
        exec(code)
    except ImportError as error:
        assert expected in str(error), error
        assert "dask.distributed" in str(error), error
    else:
        raise AssertionError(code)
assert not hasattr(distributed, "nonsense")

def where():
    import distributed
    from distributed import get_worker
    return distributed.Client.__module__, get_worker().name, hasattr(distributed.utils.thread_state, "execution_state")

assert client.submit(where).result() in [("shoal.client.client", n, True) for n in "01"]
assert client.run_on_scheduler(lambda: __import__("distributed").Client.__module__) == "shoal.client.client"
assert dask.delayed(sum)([1, 2]).compute(scheduler="distributed") == 3
import dask.array, dask.utils, numpy
assert type(dask.utils.get_scheduler_lock(dask.array.ones(3))) is distributed.Lock
class Target:
    shape, dtype = (8,), int
    def __setitem__(self, where, what):
        import numpy
        numpy.memmap(self.path, dtype=int, mode="r+", shape=8)[where] = what
target = Target()
target.path = __import__("os").path.abspath("store")
numpy.memmap(target.path, dtype=int, mode="w+", shape=8)
dask.array.store(dask.array.arange(8, chunks=2), target, lock=True)
assert numpy.memmap(target.path, dtype=int, mode="r", shape=8).sum() == 28
print("all found")
"""
    )
    assert "all found" in told


def test_arguments_and_modules_are_handed_on(tmp_path: Path) -> None:
    """``shoal run script.py a --b``, ``shoal run -m module``; a script that is not there is said."""
    script = tmp_path / "echo_arguments.py"
    script.write_text("import sys\nif __name__ == '__main__':\n    print(sys.argv[1:], 'distributed' in sys.modules)\n")
    for command in ([str(script)], ["-m", "echo_arguments"]):
        done = subprocess.run(
            [sys.executable, "-m", "shoal", "run", *command, "a", "--b"],
            capture_output=True, text=True, cwd=tmp_path, timeout=60, check=True,
        )  # fmt: skip
        assert "['a', '--b']" in done.stdout
    missing = subprocess.run(
        [sys.executable, "-m", "shoal", "run", "no-such-file.py"],
        capture_output=True, text=True, cwd=tmp_path, timeout=60, check=False,
    )  # fmt: skip
    assert missing.returncode == 2
    assert "no-such-file.py" in missing.stderr
