"""Work that was asked for: jobs with an owner, fair turns between owners, news for watchers."""

from __future__ import annotations

import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any, Literal

from canvas.errors import CanvasError, GenerationCancelled
from canvas.request import GeneratedImage, GenerationRequest

Status = Literal["queued", "downloading", "loading", "running", "done", "failed", "cancelled"]
FINISHED: tuple[Status, ...] = ("done", "failed", "cancelled")


@dataclass(eq=False)
class Job:
    """One thing to do for one owner; lives on when the tab that asked for it is closed.

    `request` is None for a download. `progress` is the engine's latest word: a `Step`
    of a picture or the bytes of a download. `id` cannot be guessed. `on_finish` is called
    once, before the watchers hear of the end.
    """

    owner: str
    kind: Literal["generate", "download"]
    model_key: str
    request: GenerationRequest | None = None
    id: str = field(default_factory=lambda: secrets.token_hex(16))
    status: Status = "queued"
    progress: Any = None
    preview: Any = field(default=None, repr=False)  # the latest small PIL picture
    images: list[GeneratedImage] = field(default_factory=list)
    error: CanvasError | None = None
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    started_at: datetime | None = None
    finished_at: datetime | None = None
    cancelled: threading.Event = field(default_factory=threading.Event, repr=False)
    on_finish: Callable[[Job], None] | None = field(default=None, repr=False)
    version: int = 0
    _changed: threading.Condition = field(default_factory=threading.Condition, repr=False)

    @property
    def finished(self) -> bool:
        """Whether nothing more will happen."""
        return self.status in FINISHED

    def update(self, **changes: Any) -> None:
        """Set attributes and wake the watchers; a finished job stays as it ended."""
        with self._changed:
            if self.finished:
                return
            for name, value in changes.items():
                setattr(self, name, value)
            now = datetime.now(UTC)
            if self.status not in ("queued", *FINISHED) and self.started_at is None:
                self.started_at = now
            if self.finished:
                self.finished_at = now
            if self.finished and self.on_finish:
                self.on_finish(self)
            self.version += 1
            self._changed.notify_all()

    def _is_newer(self, version: int) -> bool:
        return self.version != version

    def cancel(self) -> None:
        """Ask the work to stop: at once when it waits, within one step when it runs."""
        self.cancelled.set()
        if self.status == "queued":
            self.update(status="cancelled", error=GenerationCancelled("Stopped before it began."))

    def watch(self, timeout: float | None = None) -> Iterator[Job]:
        """Yield this job now and after every change until it is finished.

        Changes that come quicker than they are read fall into one. With a `timeout` in
        seconds it also yields when nothing happened for that long.
        """
        seen = -1
        while True:
            with self._changed:
                self._changed.wait_for(partial(self._is_newer, seen), timeout)
                seen, finished = self.version, self.finished
            yield self
            if finished:
                return

    def wait(self, timeout: float | None = None) -> list[GeneratedImage]:
        """Block until it is finished; returns the pictures or raises why there are none."""
        with self._changed:
            if not self._changed.wait_for(lambda: self.finished, timeout):
                raise CanvasError(f"The job is still {self.status} after {timeout:g} seconds.")
        if self.error:
            raise self.error
        return self.images


class JobQueue:
    """Jobs waiting for one worker; owners take turns, so that nobody waits behind a flood."""

    def __init__(self) -> None:
        self._turns: deque[str] = deque()
        self._waiting: dict[str, deque[Job]] = {}
        self._changed = threading.Condition()
        self._closed = False

    def put(self, job: Job) -> None:
        """Add a job behind its owner's others."""
        with self._changed:
            if job.owner not in self._waiting:
                self._waiting[job.owner] = deque()
                self._turns.append(job.owner)
            self._waiting[job.owner].append(job)
            self._changed.notify()

    def take(self) -> Job | None:
        """Block for the next job that was not cancelled meanwhile; None when closed."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._turns or self._closed)
                if self._closed:
                    return None
                owner = self._turns.popleft()
                job = self._waiting[owner].popleft()
                if self._waiting[owner]:
                    self._turns.append(owner)
                else:
                    del self._waiting[owner]
                if not job.finished:
                    return job

    def in_order(self) -> list[Job]:
        """The waiting jobs in the order in which they will be taken."""
        with self._changed:
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
        """Let the worker go home."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class JobBook:
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

    def of(self, owner: str | None = None) -> list[Job]:
        """The jobs of one owner (None: everybody's), the oldest first."""
        with self._lock:
            return [job for job in self._jobs.values() if owner in (None, job.owner)]
