"""Values in memory and on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shoal.shell import serialize
from shoal.shell.spill import Disk
from shoal.shell.store import LostValueError, Pickled, ValueStore


def filled(tmp_path: Path, count: int = 4) -> ValueStore:
    store = ValueStore(Disk(tmp_path / "spilled"))
    for n in range(count):
        store.put(f"k{n}", np.full(1000, n), 8000)
    return store


def test_the_least_recently_used_goes_first_and_comes_back(tmp_path: Path) -> None:
    """With its bytes counted where it is."""
    store = filled(tmp_path)
    store.take(["k0"])
    assert store.evict() == 8000
    assert store.is_on_disk("k1")
    assert not store.is_on_disk("k0")
    assert (store.managed, store.spilled_memory) == (24_000, 8000)
    (held,) = store.take(["k1"]).values()
    assert store.load("k1", held)[5] == 1
    assert not store.is_on_disk("k1")
    assert (store.managed, store.spilled_memory) == (32_000, 0)
    assert store.disk is not None
    written = store.disk.written
    for _ in range(4):
        store.evict()
    assert store.evict() is None
    assert store.disk.written == written + 3, "what was on disk already was written again"
    assert serialize.loads(store.dump("k2"))[0] == 2
    del held
    store.close()
    assert list((tmp_path / "spilled").iterdir()) == []
    assert store.disk.used == 0


def test_what_was_taken_can_be_loaded_after_it_was_dropped_or_replaced(tmp_path: Path) -> None:
    """By a task that waits for a thread; in memory or on disk."""
    store = filled(tmp_path, 2)
    store.evict()
    taken = store.take(["k0", "k1"])
    store.drop(["k0", "k1"])
    store.put("k0", "another", 10)
    assert "k1" not in store
    assert store.load("k0", taken["k0"])[0] == 0
    assert store.load("k1", taken["k1"])[0] == 1
    assert store.load("k0", store.take(["k0"])["k0"]) == "another"
    assert (store.managed, store.spilled_memory) == (10, 0)
    del taken
    assert list((tmp_path / "spilled").iterdir()) == []


def test_payloads_are_spilled_as_they_came(tmp_path: Path) -> None:
    """And unpickled once, by whoever needs them first."""
    store = ValueStore(Disk(tmp_path / "spilled"))
    store.put("a", Pickled(serialize.dumps({"x": np.arange(100_000)})), 800_000)
    assert store.evict() == 800_000
    held = store.take(["a"])["a"]
    assert store.load("a", held)["x"][-1] == 99_999
    assert store.load("a", held) is store.load("a", held)


def test_what_cannot_be_written_stays(tmp_path: Path) -> None:
    """With an error that names the file; what cannot be pickled is passed over; a limit of bytes holds."""
    store = filled(tmp_path, 1)
    (tmp_path / "spilled").write_text("in the way")
    with pytest.raises(OSError, match="spilled"):
        store.evict()
    assert store.managed == 8000
    stuck = ValueStore(Disk(tmp_path / "other"))
    stuck.put("lock", __import__("threading").Lock(), 100)
    stuck.put("n", 5, 100)
    assert stuck.evict() == 100
    assert stuck.is_on_disk("n")
    assert stuck.evict() is None
    limited = ValueStore(Disk(tmp_path / "third", 10_000))
    for n in range(3):
        limited.put(f"k{n}", bytes(9000), 9000)
    assert limited.evict() == 9000
    assert limited.evict() is None


def test_a_file_that_was_cut_short_is_an_error(tmp_path: Path) -> None:
    """Not another value."""
    store = filled(tmp_path, 1)
    store.evict()
    (file,) = (tmp_path / "spilled").iterdir()
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(LostValueError, match="cut short"):
        store.load("k0", store.take(["k0"])["k0"])
