"""House rules on tasks, threads, loggers, and on the places where code of users runs."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from shoal.shell import doors

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "src" / "shoal").rglob("*.py"))

#: What starts a task or a thread whose failure nobody may hear of.
STARTS = re.compile(r"\b(create_task|ensure_future|run_in_executor|run_coroutine_threadsafe|to_thread|Thread)\(")

#: Where that is done outside of shell/tasks.py, how often at the most, and who hears of a failure.
ALLOWED = {
    "cli.py": (2, "cancelled and awaited by who made them"),
    "client/client.py": (1, "awaited in the same function"),
    "client/hooks.py": (1, "doors.wait reports"),
    "client/io_loop.py": (1, "doors.wait reports"),
    "client/loop.py": (4, "the thread that waits gets it; the loop's own thread goes on"),
    "deploy/adaptive.py": (1, "its loop catches all"),
    "deploy/backends.py": (1, "awaited when the cluster closes"),
    "deploy/cluster.py": (1, "awaited by who closes"),
    "deploy/commands.py": (2, "awaited when the process has ended"),
    "observe/sampler.py": (2, "it only asks, and stops with its client"),
    "programs/deadline.py": (2, "they are the last resort, and call nothing that fails"),
    "programs/head.py": (3, "waited for by the process's only coroutine"),
    "programs/incarnation.py": (2, "awaited in the same function"),
    "programs/servers.py": (7, "awaited in the same function, or by who called"),
    "programs/worker_main.py": (5, "waited for by the process's only coroutine"),
    "shell/accepting.py": (1, "its own errors end the stranger"),
    "shell/actors.py": (1, "awaited in the same function"),
    "shell/doors.py": (1, "awaited in the same function"),
    "shell/executor.py": (1, "a thread that ends is replaced and told of"),
    "shell/link.py": (1, "it dials again, and ends in the link's end"),
    "shell/loops.py": (2, "awaited in the same function"),
    "shell/peers.py": (1, "awaited by who asks the peer"),
}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT / "src")))
def test_no_task_or_thread_fails_without_a_word(path: Path) -> None:
    """They are started by ``shell/tasks.py``; the exceptions are listed here, with who hears of a failure."""
    name = str(path.relative_to(ROOT / "src" / "shoal"))
    if name == "shell/tasks.py":
        return
    most, _ = ALLOWED.get(name, (0, ""))
    code = re.sub(r'""".*?"""', "", path.read_text(), flags=re.S)
    found = STARTS.findall(code)
    assert len(found) <= most, f"{name} starts {found}: use shoal.shell.tasks, or list it here with its reason"


def test_no_exception_is_left_out() -> None:
    """The list names files that are there."""
    assert set(ALLOWED) <= {str(path.relative_to(ROOT / "src" / "shoal")) for path in SOURCES}


def test_every_logger_is_guarded() -> None:
    """A handler that a user has installed raises where shoal logs: each logger of shoal's is listed."""
    used = {name for path in SOURCES for name in re.findall(r'getLogger\("(shoal[^"]*)"\)', path.read_text())}
    assert used == set(doors.LOGGERS)


#: Which test throws at each place.
TESTED = {
    "size": "unit.test_doors:test_every_object_has_a_size",
    "pickle": "unit.test_doors:test_what_cannot_be_pickled_is_one_kind_of_error",
    "unpickle": "integration.test_user_code:test_what_is_read_may_do_anything",
    "error": "unit.test_doors:test_every_exception_travels",
    "type": "integration.test_user_code:test_no_result_costs_a_thread",
    "end of a value": "integration.test_user_code:test_no_result_costs_a_thread",
    "key": "integration.test_user_code:test_arguments_that_misbehave_are_the_callers_error",
    "function": "integration.test_user_code:test_no_hook_function_callback_or_handler_costs_a_program",
    "actor": "integration.test_user_code:test_no_method_of_an_actor_costs_a_worker",
    "hook": "integration.test_user_code:test_no_hook_function_callback_or_handler_costs_a_program",
    "policy": "unit.test_doors:test_a_policy_may_do_and_suggest_anything",
    "preload": "integration.test_user_code:test_no_metric_or_preload_costs_a_worker",
    "metric": "integration.test_user_code:test_no_metric_or_preload_costs_a_worker",
    "callback": "integration.test_user_code:test_no_hook_function_callback_or_handler_costs_a_program",
    "handler": "integration.test_user_code:test_no_hook_function_callback_or_handler_costs_a_program",
    "log": "unit.test_doors:test_a_failure_is_reported_though_logging_fails",
    "adaptive": "integration.test_user_code:test_a_manager_of_workers_may_do_anything",
    "cluster": "integration.test_user_code:test_a_manager_of_workers_may_do_anything",
    "source": "unit.test_doors:test_the_profiler_looks_again",
    "bookkeeping": "integration.test_user_code:test_a_thread_that_is_ended_is_replaced_and_told_of",
    "program": "unit.test_own_tasks:test_a_task_that_fails_is_told_of",
}


def test_every_place_where_code_of_users_runs_is_tested_and_documented() -> None:
    """docs/user-code.md has a row for each, word for word, and a test throws at it."""
    assert set(TESTED) == set(doors.PLACES)
    for where in TESTED.values():
        module, _, function = where.partition(":")
        assert hasattr(importlib.import_module(f"tests.{module}"), function), where
    page = (ROOT / "docs" / "user-code.md").read_text()
    for name, place in doors.PLACES.items():
        assert f"| {name} | {place.code} | {place.runs} | {place.then} |" in page, name
    assert page.count("\n| ") == len(doors.PLACES) + 2  # and the head of the table
