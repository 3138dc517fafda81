"""The fair queue of waiting jobs, and the registry of all jobs."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator

from canvas.jobs.job import Job
from canvas.jobs.limits import account_of

Affinity = Callable[[Job], bool]
LOOKAHEAD = 8  # jobs among which a worker looks for one that it prefers
MAX_SKIPS = 3  # times that a job can be skipped
KEEP_SECONDS = 3600.0  # that finished jobs are kept


class JobQueue:
    """Jobs that wait for workers, scheduled round-robin between accounts, then between their owners."""

    def __init__(self) -> None:
        # By account and owner; whose turn is next comes first.
        self._waiting: dict[str, dict[str, deque[Job]]] = {}
        self._idle: list[Affinity] = []  # of the workers that wait in `take`
        self._changed = threading.Condition()
        self._closed = False

    def put(self, job: Job, *, first: bool = False) -> None:
        """Add a job after its owner's other jobs, or (`first`) before all jobs."""
        account = account_of(job.owner)
        with self._changed:
            self._remove_cancelled()
            owners = self._waiting.setdefault(account, {})
            jobs = owners.setdefault(job.owner, deque())
            if first:
                jobs.appendleft(job)
                self._waiting[account] = {job.owner: jobs, **owners}
                self._waiting = {account: self._waiting[account], **self._waiting}
            else:
                jobs.append(job)
            self._changed.notify_all()

    def take(self, prefers: Affinity | None = None) -> Job | None:
        """Block for the next job that is not cancelled; None once the queue is closed.

        A worker takes a job that it `prefers` before others, and leaves a job that another idle
        worker prefers to that one.
        """
        own = prefers or (lambda job: False)
        with self._changed:
            self._idle.append(own)
            try:
                while True:
                    if self._closed:
                        return None
                    if job := self._pick(own):
                        self._remove(job)
                        return job
                    self._changed.wait()
            finally:
                self._idle.remove(own)
                self._changed.notify_all()

    def _pick(self, own: Affinity) -> Job | None:
        order = self._order()
        if not order:
            return None
        candidates = order[:LOOKAHEAD] if order[0].skipped < MAX_SKIPS else order[:1]
        others = [prefers for prefers in self._idle if prefers is not own]
        free = [job for job in candidates if not any(prefers(job) for prefers in others)]
        found = next(filter(own, candidates), free[0] if free else None)
        if found and found is not order[0]:
            order[0].skipped += 1
        return found

    def _remove(self, job: Job) -> None:
        """Remove a job and all cancelled ones of its owner, whose turn is over."""
        account = account_of(job.owner)
        owners = self._waiting.pop(account)
        left = deque(other for other in owners.pop(job.owner) if other is not job and not other.finished)
        if left:
            owners[job.owner] = left
        if owners:
            self._waiting[account] = owners

    def _remove_cancelled(self) -> None:
        """Remove the owners who have only cancelled jobs and may never come back."""
        for account, owners in list(self._waiting.items()):
            kept = {owner: jobs for owner, jobs in owners.items() if any(_unfinished(jobs))}
            if kept:
                self._waiting[account] = kept  # in place: the order of the turns stays
            else:
                del self._waiting[account]

    def snapshot(self) -> list[Job]:
        """The waiting jobs in the order in which `take` would return them."""
        with self._changed:
            return self._order()

    def _order(self) -> list[Job]:
        waiting = self._waiting.values()
        return list(_alternate(_alternate(map(_unfinished, owners.values())) for owners in waiting))

    def close(self) -> None:
        """Make every `take` return None."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


def _unfinished(jobs: Iterable[Job]) -> Iterator[Job]:
    return (job for job in jobs if not job.finished)


def _alternate(sources: Iterable[Iterator[Job]]) -> Iterator[Job]:
    """The next job of each source in turn."""
    turns = deque(sources)
    while turns:
        source = turns.popleft()
        for job in source:
            yield job
            turns.append(source)
            break


class JobRegistry:
    """All unfinished jobs, and finished ones for `keep_seconds`, by id and owner."""

    def __init__(self, keep_seconds: float = KEEP_SECONDS) -> None:
        self._jobs: dict[str, Job] = {}
        self._keep_seconds = keep_seconds
        self._lock = threading.Lock()

    def add(self, job: Job) -> None:
        """Register a job and remove those that finished long ago."""
        oldest = time.time() - self._keep_seconds
        with self._lock:
            self._jobs = {
                key: kept
                for key, kept in self._jobs.items()
                if kept.finished_at is None or kept.finished_at.timestamp() > oldest
            }
            self._jobs[job.id] = job

    def remove(self, job: Job) -> None:
        """Forget a job: one that could not be queued, or a finished one."""
        with self._lock:
            self._jobs.pop(job.id, None)

    def get(self, job_id: str) -> Job | None:
        with self._lock:
            return self._jobs.get(job_id)

    def for_owner(self, owner: str | None = None) -> list[Job]:
        """The jobs of one owner (None: of all), oldest first."""
        with self._lock:
            return [job for job in self._jobs.values() if owner in (None, job.owner)]
