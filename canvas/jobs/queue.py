"""The fair queue of waiting jobs, and the registry of all jobs."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from canvas.jobs.job import Job

Affinity = Callable[[Job], bool]
LOOKAHEAD = 8  # jobs among which a worker looks for one that it prefers
MAX_SKIPS = 3  # times that a job can be skipped
KEEP_SECONDS = 3600.0  # that finished jobs are kept


class JobQueue:
    """Jobs that wait for workers, scheduled round-robin between owners."""

    def __init__(self) -> None:
        self._turns: deque[str] = deque()
        self._waiting: dict[str, deque[Job]] = {}
        self._idle: list[Affinity] = []  # of the workers that wait in `take`
        self._changed = threading.Condition()
        self._closed = False

    def put(self, job: Job, *, first: bool = False) -> None:
        """Add a job after its owner's other jobs, or (`first`) before all jobs."""
        with self._changed:
            waiting = self._waiting.setdefault(job.owner, deque())
            if first:
                waiting.appendleft(job)
                self._turns = deque([job.owner, *(o for o in self._turns if o != job.owner)])
            else:
                waiting.append(job)
                if job.owner not in self._turns:
                    self._turns.append(job.owner)
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
        left = deque(j for j in self._waiting[job.owner] if j is not job and not j.finished)
        self._turns.remove(job.owner)
        if left:
            self._waiting[job.owner] = left
            self._turns.append(job.owner)
        else:
            del self._waiting[job.owner]

    def snapshot(self) -> list[Job]:
        """The waiting jobs in the order in which `take` would return them."""
        with self._changed:
            return self._order()

    def _order(self) -> list[Job]:
        turns = deque(self._turns)
        waiting = {owner: deque(job for job in jobs if not job.finished) for owner, jobs in self._waiting.items()}
        order: list[Job] = []
        while turns:
            owner = turns.popleft()
            if waiting[owner]:
                order.append(waiting[owner].popleft())
                turns.append(owner)
        return order

    def close(self) -> None:
        """Make every `take` return None."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


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

    def get(self, job_id: str) -> Job | None:
        with self._lock:
            return self._jobs.get(job_id)

    def for_owner(self, owner: str | None = None) -> list[Job]:
        """The jobs of one owner (None: of all), oldest first."""
        with self._lock:
            return [job for job in self._jobs.values() if owner in (None, job.owner)]
