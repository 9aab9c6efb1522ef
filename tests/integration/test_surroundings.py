"""Environments that are scarce or odd: the program works, or fails with an error that is known (`surroundings.py`)."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.integration.surroundings import ROWS, Row, others_can_run_this, run

SHORT = [row for row in ROWS if row.short]


def _possible(row: Row) -> bool:
    if row.root and (os.geteuid() or shutil.which("unshare") is None):
        return False
    return "setpriv" not in row.shell or others_can_run_this()


@pytest.fixture(scope="module")
def found() -> dict[str, list[str]]:
    """What was wrong in each environment; all are run at once, two at a time."""
    rows = [row for row in SHORT if _possible(row)]
    with ThreadPoolExecutor(2) as pool:
        return dict(zip([row.name for row in rows], pool.map(run, rows), strict=True))


@pytest.mark.parametrize("row", SHORT, ids=lambda row: row.name)
def test_a_small_program(found: dict[str, list[str]], row: Row) -> None:
    """It ends soon, says what it should, prints no traceback, and leaves no process and no file."""
    if not _possible(row):
        pytest.skip("this takes root, unshare, and a Python that other users can run")
    assert found[row.name] == []
