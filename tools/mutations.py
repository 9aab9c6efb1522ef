"""Break the cores one line at a time, and see that the simulator finds each, or the event orders that are told by hand.

    python tools/mutations.py [--seeds N] [--only TEXT]

Each mutation is made in a copy of the sources. Status 1 if one is not found, or cannot be made any more.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

SOURCE = Path(__file__).parents[1] / "src"
TESTS = Path(__file__).parents[1] / "tests"
BY_HAND = [
    TESTS / "scenarios", TESTS / "machines", TESTS / "unit" / "test_hostile_messages.py", TESTS / "unit" / "test_nanny_core.py", TESTS / "unit" / "test_worker_parts.py",
    TESTS / "unit" / "test_liveness.py",
    TESTS / "unit" / "test_sealing.py", TESTS / "unit" / "test_session.py",
]  # fmt: skip
STATE, SCHEDULER = "core/scheduler/state.py", "core/scheduler/reactor.py"
ASSIGNMENT, SCARCE = "core/scheduler/assignment.py", "core/scheduler/scarce.py"
WORKER, CLIENT = "core/worker/reactor.py", "core/client/reactor.py"
COPIES, FLEET, SLOTS = "core/worker/copies.py", "core/scheduler/fleet.py", "core/worker/slots.py"
CHANNEL, NANNY = "core/channel.py", "core/nanny/reactor.py"
SEALING, FRAMING, SESSION = "core/sealing.py", "core/framing.py", "core/session.py"
OWING = "core/scheduler/owing.py"
DISTRUST, PARCELS, UNSENDABLE = "core/distrust.py", "core/parcels.py", "core/unsendable.py"
MEETING = "core/scheduler/meeting.py"
LIVENESS, CARRYING = "core/liveness.py", "core/scheduler/carrying.py"
TOPICS = "core/scheduler/topics.py"
BOXES, LOCKS = "core/scheduler/boxes.py", "core/scheduler/locks.py"
RETIREMENT, COPYING = "core/scheduler/retirement.py", "core/scheduler/copying.py"

#: What is broken, where, and how: the text that goes, and what comes in its place.
MUTATIONS: list[tuple[str, str, str, str]] = [
    ("a peer whose message raised stays", SCHEDULER,
     "            self._roles.pop(event.peer, None)\n\n    def _hear", "\n    def _hear"),
    ("the link of a peer whose message raised is not closed", DISTRUST,
     "            CloseLink(peer, reason),\n", ""),
    ("invariants are not looked at after a bad message", DISTRUST,
     "            check()\n", "            pass\n"),
    ("stale entries of the heap of open workers are not swept", "core/scheduler/queues.py",
     "            if len(self._heap) > self._limit:\n                self._sweep()\n", ""),
    ("events of many topics have no bound together", TOPICS,
     "                self.kept += 1\n                if", "                if"),
    ("what a request is asked with is not checked", MEETING,
     "arguments.check(message.args)", "message.args"),
    ("a message that cannot be encoded takes the rest of its turn along", PARCELS,
     "            for message in messages:\n                yield from self._encoded([message])\n            return",
     "            return"),
    ("a task that cannot be reported is not failed", UNSENDABLE,
     "            return Fallback([Failed(item.key, item.attempt, 0.0, 0.0, error) for item in message.items], [])",
     "            return Fallback([], [])"),
    ("a submission ends before its last piece", SCHEDULER,
     "            case Submit() if message.more:\n                client.pieces.append(message)",
     "            case Submit() if message.more:\n                self._on_submit(client, message)"),
    ("a finished task does not wake its dependents", STATE,
     "                if dependent.n_waiting == 0:\n                    self._ready.append(dependent)\n            elif",
     "                if dependent.n_waiting == 0:\n                    pass\n            elif"),
    ("clients do not hear of results", STATE, "        if task.who_wants:\n            for client", "        if False:\n            for client"),
    ("a client whose link is full is told of results", "core/scheduler/outbox.py", "            if peer.owed is not None and peer.owed.takes(message):\n                return\n", ""),
    ("a client that reads again does not hear of what was cancelled", OWING, "            if cancelled is not None:\n", "            if False:\n"),
    ("a cancellation that waits hits a new wish", STATE, "            client.owed.wished(task.key)\n", "            pass\n"),
    ("a client that reads again does not hear of what is computed again", OWING, "                again.append(key)\n", "                pass\n"),
    ("only the first slice of what a client is owed is told", OWING, "            if owed.keys or owed.events:\n", "            if False:\n"),
    ("a client that reads again is never told", OWING, "            self._telling[client.id] = None\n", "            pass\n"),
    ("tasks of a dead worker stay with it", STATE, "            if task.worker is worker:\n                self.give_back", "            if False:\n                self.give_back"),
    ("results of a dead worker are still counted on", STATE, "        for task in tuple(worker.has_what):\n            self.lose_replica(task, worker)", "        pass"),
    ("copies of released tasks are not freed", STATE, "                self.free(worker, task.key)\n                self._forget_replica", "                self._forget_replica"),
    ("reports of earlier assignments count", FLEET, "task.worker is not worker or task.attempt != item.attempt", "task.worker is not worker"),
    ("assignments are numbered for each key", ASSIGNMENT, "        task.attempt = self.attempts\n", "        task.attempt += 1\n"),
    ("what was assigned ahead of a failure is not taken back", STATE, "                if t is not task and worker is not None:", "                if False and worker is not None:"),
    ("what was assigned ahead is not taken back with its input", STATE, "                    known.add(dependent)\n                    found.append(dependent)\n", "                    known.add(dependent)\n"),
    ("what was assigned ahead is never counted as work", ASSIGNMENT, "        worker.n_ahead -= 1\n        task.estimate", "        task.estimate"),
    ("a task runs without an input that is not known", STATE, "            if t.unknown:\n", "            if False:\n"),
    ("what nobody wants any more is kept", STATE, "        if not task.needed:\n            self._loose.append(task)\n\n    def cancel", "    def cancel"),
    ("a cancellation is not told", STATE, "                    self.tell(other, KeysCancelled([t.key], reason))", "                    pass"),
    ("a vanished client still wants", SCHEDULER, "        for task in tuple(client.wants):\n            state.unwant(client, task)\n        state.drop", "        state.drop"),
    ("a missing copy is not struck off", FLEET, "            if holder is not None:\n                state.lose_replica(task, holder)\n", "            if holder is not None:\n"),
    ("a lost input does not block its dependents", STATE, "                dependent.n_waiting += 1\n", "                pass\n"),
    ("an error does not reach the dependents", STATE, "            stack.extend(t.dependents or ())\n            if not t.needed", "            if not t.needed"),
    ("old news hits new wishes", "core/client/future.py", "self.wanted and wish >= self.wish and not", "not"),
    ("the last release is not told", CLIENT, "                self._unwanted.append(record.key)\n", "                pass\n"),
    ("a release takes the wish for a newer future along", CLIENT, "            if current is None or current is record or not current.wanted:\n", "            if True:\n"),
    ("a release that a newer wish follows is not told", CLIENT, "current is record or not current.wanted", "current is record"),
    ("what is let go of stays pending", CLIENT, "        self.forsake(record)\n", ""),
    ("a wish is counted for whatever record has its key by now", CLIENT, "            for record in records:\n                record.wish, record.wanted", "            for record in [self.futures[one.key] for one in records if one.key in self.futures]:\n                record.wish, record.wanted"),
    ("a future that is retried waits for news that it failed", CLIENT, "                self._restart(record)\n                if origin", "                if origin"),
    ("how a retried task stands is not told", SCHEDULER, "                if message.wish:\n                    client.wish = message.wish\n                    self._on_want", "                if False:\n                    self._on_want"),
    ("a second wish for what is computed again says nothing", STATE, "        elif again:\n            self.tell_keys(client, KeysRestarted, task.key)", "        elif False:\n            pass"),
    ("a task waits for a pool that no worker has", STATE, "if placement.lacks_pool(self, task):", "if False:"),
    ("a pool that a worker had is forgotten", "core/scheduler/placement.py", "options.executor in state.pools:", "any(options.executor in w.executors for w in state.workers.values()):"),
    ("a worker that lacks a pool ends no wait for it", "core/scheduler/queues.py", "worker, pools=False)", "worker)"),
    ("a thread that ended is still counted", WORKER, "        self.slots.give(record, outcome.stop - outcome.start if began else None)", "        pass"),
    ("resources are not given back", "core/worker/slots.py", "            self._units[name] += needed(amount)", "            pass"),
    ("a dropped attempt holds on to its inputs", WORKER, "        self._attempt(record, AttemptEvent.DROP)\n        self._release_deps(record)", "        self._attempt(record, AttemptEvent.DROP)"),
    ("what is wanted after an activity is not begun", WORKER, "        if record.goal is Goal.COMPUTE:\n            self._begin(record)\n        elif record.waiters:", "        if record.waiters:"),
    ("a missing key is not reported", COPIES, "        self._out.append(Missing(record.key,", "        (Missing(record.key,"),
    ("what did not fit into an answer is forgotten", COPIES, "        for record in records.values():\n            # Neither", "        for record in ():\n            # Neither"),
    ("a value that is here is not reported when asked for", WORKER, "        if record.replica is ReplicaState.HELD:\n            self._report_done(record)\n        elif", "        if record.replica is ReplicaState.HELD:\n            pass\n        elif"),
    ("a record is forgotten while a thread is at work", COPIES, "record.goal is not Goal.DROP or record.waiters or record.busy or", "record.goal is not Goal.DROP or record.waiters or"),
    ("a copy that arrives is not reported", COPIES, "            if record.goal is Goal.COMPUTE:\n                self._report_done(record)\n            elif record.goal is Goal.HOLD:  # else it goes when those here that wait for it have it\n                self._add_key(record)\n            self._stored(record)\n        for key, reason", "            self._stored(record)\n        for key, reason"),
    ("a granted theft leaves the task nowhere", "core/scheduler/stealing.py", "            state.give_back(task)\n", "            pass\n"),
    ("an answer about an earlier assignment counts", "core/scheduler/stealing.py", "task.attempt != answer.attempt or task.thief is None", "False"),
    ("a worker gives up what is in a thread", WORKER, "            and record.attempt in PENDING\n            and record.spec", "            and record.spec"),
    ("a theft is counted for ever", ASSIGNMENT, "            task.thief.n_stealing -= 1\n", "            pass\n"),
    ("who left the pool still takes a thread", "core/worker/slots.py", "        self._seceded[record.key] = self._leave(record.key)", "        pass"),
    ("a task that left the pool still counts as work", "core/scheduler/assignment.py", "            worker.occupancy -= task.estimate\n            task.estimate = 0.0\n", "            task.estimate = 0.0\n"),
    ("waiting tasks are not told of a value that came", COPIES, "            waiter.n_missing -= 1\n            if waiter.n_missing == 0:\n                self._prepare(waiter)", "            waiter.n_missing -= 1"),
    ("a paused worker keeps what waits there", WORKER, "                self._drop_attempt(record)\n                self._give_back(record)\n", "                pass\n"),
    ("a paused worker goes on starting tasks", WORKER, "        if self.paused or self.leaving:\n            self._give_back(record)", "        if self.leaving:\n            self._give_back(record)"),
    ("what a worker gives back stays assigned to it", FLEET, "                    if task is not None:\n                        state.give_back(task)\n            case Freed", "                    pass\n            case Freed"),
    ("a worker that takes tasks again is not told to those who waited for it", STATE, "        self._ready += self.stranded.candidates(worker)\n", ""),
    ("queued tasks wait for workers that take none", STATE, "            for task in self.queue.tasks():\n                self._strand(task)\n", "            pass\n"),
    ("a thread that is free is counted for ever", WORKER, "        if record.released:\n            assert", "        if False:\n            assert"),
    ("what others hold is counted as free", SCARCE, "            if worker.in_use.get(name, 0) + units >", "            if units >"),
    ("threads of a pool that others are in are counted as free", SCARCE, "worker.pools_in_use.get(self.executor, 0) <", "0 <"),
    ("tasks with resources wait for a thread on a worker", SCARCE, "        return worker.n_needy < worker.nthreads", "        return True"),
    ("resources that come free are not told to those in line", SCARCE, "                    if shape.queue.size:\n                        self.changed[shape] = None\n", ""),
    ("a worker that comes is not told to those in line", SCARCE, "                shape.enter(worker)\n                self.changed[shape] = None\n", "                shape.enter(worker)\n"),
    ("those in line wait for a worker that is gone", STATE, "        for task in self.scarce.leave(worker):\n            self._strand(task)\n", "        self.scarce.leave(worker)\n"),
    ("only the first in line is served", ASSIGNMENT, "                if following is not None:\n", "                if False:\n"),
    ("tasks in line overtake those of a higher priority", ASSIGNMENT, "first.priority[0] < task.priority[0]", "False"),
    ("what was taken back holds no resources", ASSIGNMENT, "if task.shape is not None and (may_run or task.shape.needs):", "if False:"),
    ("what was taken back after it left the pool holds no resources", ASSIGNMENT, "(may_run or task.shape.needs)", "may_run"),
    ("resources of what was taken back are not given back", ASSIGNMENT, "        if claim is not None:\n            Claims.give(worker, *claim)\n", ""),
    ("what leaves the pool gives its resources back", ASSIGNMENT, "            worker.claims[attempt] = (shape, False)\n", "            pass\n"),
    ("a worker says that resources are free when a task leaves the pool", WORKER, "        if record.owed and self.slots.holds(key):", "        if False:"),
    ("a thief gets a task for which it has nothing free", ASSIGNMENT, "(shape is None or shape.fits(thief))", "True"),
    ("what a worker cannot run any more waits there for ever", WORKER, "        for record in list(self.keys.values()):\n            if record.attempt in PENDING and record.spec is not None and record.spec.resources:", "        for record in ():\n            if True:"),
    ("what comes to a worker that has less by then waits there for ever", WORKER, "(spec.resources and not self.slots.could_run(spec.resources))", "False"),
    ("other resources are not told to those that wait", STATE, "            self.scarce.enter(worker)\n            for task in alone:", "            for task in alone:"),
    ("a worker that spills runs what it would have to read first", SLOTS, "            if self.short and _needs_disk(record):", "            if False:"),
    ("who needs something from disk is passed over for ever", SLOTS, "record.passed_over >= PASSED_OVER_MOST or not", "not"),
    ("what is on disk is passed over though it is more important", SLOTS, "record.priority[0] != passed[0][2].priority[0]", "False"),
    ("a worker runs what has resources before what is urgent", SLOTS, "urgent.priority[0] < record.priority[0]", "False"),
    ("a running value of another definition counts", WORKER, "        if record.edition != record.wanted:\n            if outcome", "        if False:\n            if outcome"),
    ("a silent worker is kept", FLEET, "            if silent > ttl:", "            if False:"),
    ("whoever is blamed need not have run", FLEET, "            running = [task.key for task in assigned[: worker.nthreads]]", "            running = [*state.tasks]"),
    ("tags have no number", SEALING, "        self._number += 1\n", "        pass\n"),
    ("both directions have one key", SEALING, 'b"seal\\0" + side + b', 'b"seal\\0" + b'),
    ("lengths are believed before they are checked", FRAMING, 'self._check(self._seal.verify(tag, self._begun + piece))', "self._seal.verify(tag, self._begun + piece)"),
    ("buffers are not authenticated", FRAMING, "self._check(self._seal.verify(piece, self._body, self._buffers))", "pass"),
    ("a proof does not cover the certificate", SESSION, "b\"%d\" % challenge.process, binding,", "b\"%d\" % challenge.process,"),
    ("any process of the user's may pass a handshake on", SESSION, "challenge.seal or challenge.process != carrier.peer_process", "challenge.seal"),
    ("bytes behind a proof are taken", FRAMING, "if frames and have and not self.buffer_limit:", "if False:"),
    ("what was not heard is not said again", CHANNEL, "        return iter([frame for frame, _ in self._kept])", "        return iter(())"),
    ("a worker that failed to start is not tried again", NANNY, "        if self.state is ChildState.BACKOFF:\n            self._start(now)\n", "        if self.state is ChildState.BACKOFF:\n            pass\n"),
    ("a worker that was to be killed comes back", NANNY, "        again = self.wish is Wish.UP and", "        again = self.wish in (Wish.UP, Wish.DOWN) and"),
    ("a nanny that was to leave brings another worker", NANNY, "            self.wish = Wish.LEAVE\n", "            self.wish = Wish.UP\n"),
    ("a restart does not undo a kill", NANNY, "            self.wish, self._replace = Wish.UP, True\n", "            self._replace = True\n"),
    ("inputs that are too much for a worker count for nothing", "core/scheduler/supervision.py", "if worker == message.worker and (large or not message.running):", "if False:"),
    ("large inputs do not count beside what runs", "core/scheduler/supervision.py", "(large or not message.running)", "(not message.running)"),
    ("tasks with small inputs count for what runs", "core/scheduler/supervision.py", "(large or not message.running)", "True"),
    ("inputs count for deaths of any kind", "core/scheduler/supervision.py", 'if message.cause == "memory" and not message.expected:', "if not message.expected:"),
    ("a worker that is named and not there makes the answer wait", "core/scheduler/supervision.py", "            if left and restart.wait_for_workers and now < restart.deadline:\n", "            if restart.wait_for_workers and now < restart.deadline + 1e9:\n"),
    ("a restriction to a host is passed over", "core/scheduler/placement.py", "        not options.workers or options.allow_other_workers or", "        True or"),
    ("the list of who may run what is never renewed", STATE, "        self.running_nthreads += worker.nthreads\n        self.able.clear()\n", "        self.running_nthreads += worker.nthreads\n"),
    ("a task of another pool takes a thread of the first", SLOTS, "        return self.pools[record.spec.executor]", "        return self.pools[\"\"]"),
    ("a copy that was asked for is dropped with the task that needed it", WORKER, "dep.replica in ON_THE_WAY and not dep.asked:", "dep.replica in ON_THE_WAY:"),
    ("a worker that is to go is given tasks", STATE, "        if worker.running:\n            self._takes_none(worker)\n        worker.state = WORKER.advance(worker.state, WorkerEvent.RETIRE, worker.id)", "        worker.state = WORKER.advance(worker.state, WorkerEvent.RETIRE, worker.id)"),
    ("a worker that stays takes no tasks", STATE, "        else:\n            self._takes_tasks(worker)\n\n    def fail_stranded", "        else:\n            pass\n\n    def fail_stranded"),
    ("a worker goes with what only it holds", RETIREMENT, "        if departure.todo:\n            if any(", "        if False:\n            if any("),
    ("a worker goes while a thread is at work", RETIREMENT, "        if not worker.processing:\n            self._finish(departure)", "        if True:\n            self._finish(departure)"),
    ("a worker goes before it has heard that it is to go", RETIREMENT, "        if not departure.heard:\n            if now <", "        if False:\n            if now <"),
    ("data is moved before the nanny has heard", RETIREMENT, "departure.nanny_number, departure.nanny_heard = self._number, False", "departure.nanny_number, departure.nanny_heard = self._number, True"),
    ("the nanny is not told", RETIREMENT, "            self._say(nanny.id, Leave(self._number, True, departure.reason))", "            departure.nanny_heard = True"),
    ("a slot that was left takes another worker", FLEET, "        if message.slot in self.left:\n", "        if False:\n"),
    ("a copy on a worker that is to go counts as safe", RETIREMENT, "        safe = any(worker.stays for worker in holders)", "        safe = len(holders) > 1"),
    ("what a worker held from the start counts as safe beside another that goes", RETIREMENT, "and not any(w.stays for w in holders):", "and len(holders) < 2:"),
    ("what a worker computes on its way out is not moved", RETIREMENT, "            elif task not in departure.todo:\n                departure.todo[task] = None\n                departure.line.append(task)", "            elif task not in departure.todo:\n                pass"),
    ("a failed copy counts as under way for ever", COPYING, "        if move is not None:\n            self._end(move)\n            self._failures", "        if move is not None:\n            self._failures"),
    ("copies on their way to a worker that takes none are waited for", COPYING, "            if not target.running:\n                reason", "            if False:\n                reason"),
    ("an order to drop meets a copy that nobody knew of", WORKER, "record.replica is ReplicaState.HELD and record.announced > seen", "False"),
    ("an order to drop names too much as heard", "core/scheduler/outbox.py", "FreeKeys(list(worker.out_free), worker.announced)", "FreeKeys(list(worker.out_free), worker.announced + 1)"),
    ("a copy that cannot be had is not given up", COPIES, "        if not record.waiters:\n            self._give_up(record, \"none", "        if False:\n            self._give_up(record, \"none"),
    ("a copy that is asked for and here already is not told of", COPIES, "            if record.replica is ReplicaState.HELD:\n                self._add_key(record)\n                continue\n            record.nbytes", "            if record.replica is ReplicaState.HELD:\n                continue\n            record.nbytes"),
    ("a worker that is to go keeps what waits there", WORKER, "        if message.on:\n            self._hand_back()\n        self._out.append(Leaving", "        self._out.append(Leaving"),
    ("a worker that is to go begins tasks", WORKER, "        if self.paused or self.leaving:\n            self._give_back(record)", "        if self.paused:\n            self._give_back(record)"),
    ("a worker that was let go of holds on to its data", WORKER, "        for key in list(self.keys):\n            self._on_free(key, self._announcements)\n", "        pass\n"),
    ("whoever asked is not answered", RETIREMENT, "            pending.waiting.pop(departure.worker, None)\n            self._answer_retirement(pending)", "            pending.waiting.pop(departure.worker, None)"),
    ("who dies on the way is waited for", RETIREMENT, "        departure = self.departures.pop(worker, None)\n        if departure is None:\n            return\n", "        departure = self.departures.pop(worker, None)\n        if departure is None or not expected:\n            return\n"),
    ("the nanny of a worker that stays still will not restart it", RETIREMENT, "            self._say(nanny.id, Leave(self._number, False))", "            pass"),
    ("a worker that stays is not told", RETIREMENT, "        self.state.tell(worker, Leave(self._number, False))\n", ""),
    ("what is safe since another stays is still waited for", RETIREMENT, "        self.state.touched.update(dict.fromkeys(worker.has_what))", "        pass"),
    ("data is taken by a worker that is to go", COPIES, "        if self.leaving:\n            return False\n", ""),
    ("a nanny whose owner wants it to leave stays since the scheduler says so", NANNY, "        elif self.wish is Wish.LEAVE and not self._leaves_for_good:", "        elif self.wish is Wish.LEAVE:"),
    ("meeting: a value that is taken out is let go of at once", BOXES, "            self._handed[client, rid] = keys\n", "            self._keeper.drop(keys)\n"),
    ("meeting: who took a value and is gone still holds it", BOXES, "            self.took(owner, rid)\n", "            pass\n"),
    ("meeting: a variable that is read loses what is inside", BOXES, "            if keep:\n                self._keeper.keep(keys)", "            if False:\n                self._keeper.keep(keys)"),
    ("meeting: what waited to be put is kept though nobody waits", BOXES, "                queue.putters.remove(gone)\n                self._keeper.drop(item[1])", "                queue.putters.remove(gone)"),
    ("meeting: who stands behind one that withdraws is not served", BOXES, "                queue.getters.remove(gone)\n                self._move(queue)", "                queue.getters.remove(gone)"),
    ("meeting: a dataset that is replaced is not let go of", BOXES, "        self._keeper.keep(value[1])\n        self.unpublish(name)", "        self._keeper.keep(value[1])"),
    ("meeting: a lease goes to one who does not wait any more", "core/scheduler/waiting.py", "            waiter.over = True\n            waiter.drop(waiter)", "            waiter.over = True"),
    ("meeting: leases of a client that is gone stay", LOCKS, "            self.release(lease)\n\n    def step", "            pass\n\n    def step"),
    ("meeting: a scheduler that stood still takes leases back", LOCKS, "            if late:", "            if False:"),
    ("meeting: later requests for several names overtake earlier ones", LOCKS, "                spoken_for.update(names)", "                pass"),
    ("meeting: one lease more than there are", LOCKS, "len(semaphore.held) < semaphore.most", "len(semaphore.held) <= semaphore.most"),
    ("meeting: what was fired and forgotten is kept for ever", "core/scheduler/meeting.py", "                    self.state.unwant(record, task)", "                    pass"),
    ("a silent link is never judged", LIVENESS, "        if now - self.heard_at >= self.timeout:", "        if False:"),
    ("a judge that stood still extends nothing", LIVENESS, "min(passed, 2 * self.period)", "passed"),
    ("a silent process counts as a machine that is gone", LIVENESS, "(machine is None or machine >= self.timeout)", "True"),
    ("bytes are no life", LIVENESS, "        if heard:\n            self.heard_at = now\n", ""),
    ("nobody beats", LIVENESS, "            return Verdict.BEAT\n", "            return Verdict.FINE\n"),
    ("what cannot be fetched is not asked for by way of the scheduler", COPIES, "if self.fetcher.is_round(fetch.peer, now):", "if False:"),
    ("a value that came by way of the scheduler is not taken", COPIES, "            self._effects.append(TakeOver(", "            (TakeOver("),
    ("a worker is not told that its errand failed", CARRYING, "            self._say(errand.asker, Given(errand.rid, reason=reason))", "            pass"),
    ("an errand outlives its holder", CARRYING, "            if who in (errand.asker, errand.holder):\n                del self._under_way[number]\n", "            if False:\n                del self._under_way[number]\n"),
    ("errands have no deadline", CARRYING, "            if now >= errand.deadline:", "            if False:"),
    ("a holder has several errands at a time", CARRYING, "errand.holder in busy or ", ""),
    ("where a task goes is chosen as if there were no cuts", "core/scheduler/placement.py", "    cuts = state.cuts or None\n", "    cuts = None\n"),
    ("a task whose process was ended counts as begun", WORKER, 'outcome.status not in ("skipped", "killed")', 'outcome.status != "skipped"'),
    ("the processes of tasks that nobody wants go on", WORKER, "CancelRun([key], kill=True)", "CancelRun([key])"),
]  # fmt: skip

_RUN = """
import sys
from shoal.sim.options import Options
from shoal.sim.world import run
for seed in range(int(sys.argv[1])):
    broken = run(Options.draw(seed))[1]
    if broken:
        print(seed, broken.strip().splitlines()[0 if "Violation" in broken else -1][:110])
        sys.exit(1)
"""


def find(mutation: tuple[str, str, str, str], seeds: int) -> str:
    """Make one mutation in a copy; return what the simulator says, or nothing."""
    _, path, old, new = mutation
    with tempfile.TemporaryDirectory() as directory:
        shutil.copytree(SOURCE, directory, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        file = Path(directory) / "shoal" / path
        text = file.read_text()
        if text.count(old) != 1:
            return f"CANNOT BE MADE: its text is there {text.count(old)} times"
        file.write_text(text.replace(old, new))
        environment = {**os.environ, "PYTHONPATH": directory, "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, "-c", _RUN, str(seeds)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=600)
        if done.returncode == 1 and done.stdout:
            return f"seed {done.stdout.strip()}"
        if done.returncode:
            return done.stderr.strip()[-300:]
        command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", *map(str, BY_HAND)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=600)
        failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
        return f"test {failed[0].partition('::')[2][:110]}" if failed else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2500)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    chosen = [mutation for mutation in MUTATIONS if options.only in mutation[0]]
    table = Table("broken", "found by")
    missed = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        told = pool.map(lambda mutation: find(mutation, options.seeds), chosen)
        for mutation, what in zip(track(chosen), told, strict=False):
            good = what.startswith(("seed ", "test "))
            missed += not good
            table.add_row(mutation[0], what if good else f"[red]{what or 'NOT FOUND'}[/red]")
    console = Console(width=150)
    console.print(table)
    console.print(f"{len(chosen) - missed} of {len(chosen)} found")
    raise SystemExit(1 if missed else 0)


if __name__ == "__main__":
    main()
