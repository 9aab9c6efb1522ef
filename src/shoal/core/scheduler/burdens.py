"""Which tasks a worker's memory may have been short for before a thread had any of them: those with large inputs.

What the threads were in, a nanny tells. But inputs are fetched, or read from disk, before that; where they do not fit
into the worker's memory, it dies each time at the same place, with nothing in its threads, and would so for ever.
"""

from __future__ import annotations

from shoal.core.scheduler.roster import WorkerRecord

#: The part of a worker's memory limit from which on the inputs of a task are large.
LARGE = 0.5


def burdens(worker: WorkerRecord) -> tuple[dict[str, str], bool]:
    """The first tasks whose inputs the worker may have been bringing together, with what they took in words.

    As many as it has threads: those with large inputs, or, where there are none (sizes may be estimates), any with
    inputs. Also returns whether they are large. To be asked before the worker is removed.
    """
    found = [
        (task.key, sum(max(dep.nbytes, 0) for dep in task.deps))
        for task in sorted(worker.processing)
        if task.deps and not task.n_waiting and not task.long_running
    ]
    large = [(key, nbytes) for key, nbytes in found if worker.memory_limit and nbytes > LARGE * worker.memory_limit]
    chosen = (large or found)[: worker.nthreads]
    return {key: f"its inputs of {nbytes / 1e6:.0f} MB were brought together" for key, nbytes in chosen}, bool(large)
