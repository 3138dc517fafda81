"""Fair scheduling of waiting jobs, and the registry of all jobs."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from canvas.jobs.job import Job

Affinity = Callable[[Job], bool]


LOOKAHEAD = 8  # jobs among which a taker looks for one that suits it


MAX_SKIPS = 3  # times that a job lets others go before


class JobQueue:
    """Jobs waiting for workers; owners take turns, so that nobody waits behind a flood."""

    def __init__(self) -> None:
        self._turns: deque[str] = deque()
        self._waiting: dict[str, deque[Job]] = {}
        self._idle: list[Affinity] = []  # of those who are waiting in `take`
        self._changed = threading.Condition()
        self._closed = False

    def put(self, job: Job, *, first: bool = False) -> None:
        """Add a job behind its owner's others, or before everybody's."""
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

    def take(self, suits: Affinity | None = None) -> Job | None:
        """Block for the next job that was not cancelled meanwhile; None when closed.

        `suits` says for which jobs a taker is best: those it takes sooner than others, and
        a job that suits another idle taker it leaves to that one.
        """
        mine = suits or (lambda job: False)
        with self._changed:
            self._idle.append(mine)
            try:
                while True:
                    if self._closed:
                        return None
                    if job := self._pick(mine):
                        self._remove(job)
                        return job
                    self._changed.wait()
            finally:
                self._idle.remove(mine)
                self._changed.notify_all()

    def _pick(self, mine: Affinity) -> Job | None:
        order = self._order()
        if not order:
            return None
        candidates = order[:LOOKAHEAD] if order[0].skipped < MAX_SKIPS else order[:1]
        others = [suits for suits in self._idle if suits is not mine]
        free = [job for job in candidates if not any(suits(job) for suits in others)]
        found = next(filter(mine, candidates), free[0] if free else None)
        if found and found is not order[0]:
            order[0].skipped += 1
        return found

    def _remove(self, job: Job) -> None:
        """Take a job out; its owner has had a turn. Forgets those that were cancelled."""
        left = deque(j for j in self._waiting[job.owner] if j is not job and not j.finished)
        self._turns.remove(job.owner)
        if left:
            self._waiting[job.owner] = left
            self._turns.append(job.owner)
        else:
            del self._waiting[job.owner]

    def snapshot(self) -> list[Job]:
        """The waiting jobs in the order in which they will be taken."""
        with self._changed:
            return self._order()

    def _order(self) -> list[Job]:
        turns = deque(self._turns)
        waiting = {
            owner: deque(job for job in jobs if not job.finished)
            for owner, jobs in self._waiting.items()
        }
        order: list[Job] = []
        while turns:
            owner = turns.popleft()
            if waiting[owner]:
                order.append(waiting[owner].popleft())
                turns.append(owner)
        return order

    def close(self) -> None:
        """Let the workers go home."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class JobRegistry:
    """All jobs that are alive, and the finished ones for a while, by owner."""

    def __init__(self, keep_seconds: float = 3600.0) -> None:
        self._jobs: dict[str, Job] = {}
        self._keep_seconds = keep_seconds
        self._lock = threading.Lock()

    def add(self, job: Job) -> None:
        """Remember a job; forgets those that ended long ago."""
        oldest = time.time() - self._keep_seconds
        with self._lock:
            self._jobs = {
                key: kept
                for key, kept in self._jobs.items()
                if kept.finished_at is None or kept.finished_at.timestamp() > oldest
            }
            self._jobs[job.id] = job

    def get(self, job_id: str) -> Job | None:
        """The job of that id, whoever owns it."""
        with self._lock:
            return self._jobs.get(job_id)

    def for_owner(self, owner: str | None = None) -> list[Job]:
        """The jobs of one owner (None: everybody's), the oldest first."""
        with self._lock:
            return [job for job in self._jobs.values() if owner in (None, job.owner)]
