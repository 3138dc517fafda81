"""Work that was asked for: jobs with an owner, fair turns between owners, news for watchers."""

from __future__ import annotations

import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextvars import Context, copy_context
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, Literal

from canvas.errors import CanvasError, GenerationCancelled
from canvas.request import GeneratedImage, GenerationRequest, Step

Status = Literal["queued", "downloading", "loading", "running", "done", "failed", "cancelled"]
FINISHED: tuple[Status, ...] = ("done", "failed", "cancelled")


@dataclass(eq=False)
class Job:
    """One thing to do for one owner; lives on when the tab that asked for it is closed.

    `request` is None for a download; `channel` is one of `request.CHANNELS`. `progress` is the
    engine's latest word: a `Step` of a picture or the bytes of a download. `id` cannot be
    guessed. `on_finish` is called once, before the watchers hear of the end. `context` is that
    of whoever asked: ZeroGPU finds there whose quota to charge.
    """

    owner: str
    kind: Literal["generate", "download"]
    model_key: str
    request: GenerationRequest | None = None
    channel: str = "python"
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
    context: Context = field(default_factory=copy_context, repr=False)
    attempts: int = 0  # that ended with the death of a worker
    passed_over: int = 0  # times that a later job went before
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
            if self.finished:  # from now on it is only remembered, for an hour
                self.finished_at = now
                self.preview, self.context = None, Context()
            try:
                if self.finished and self.on_finish:
                    self.on_finish(self)
            finally:
                self.version += 1
                self._changed.notify_all()

    def tell(self, *, status: Status | None = None, step: Step | None = None) -> None:
        """Take in what a painter tells; steps of the pictures that are left count on."""
        changes: dict[str, Any] = {} if status is None else {"status": status}
        if step is not None:
            whole = self.request.num_images if self.request else 1
            done = whole - step.num_images
            changes["progress"] = replace(
                step, image_index=step.image_index + done, num_images=whole, preview=None
            )
            changes["preview"] = step.preview or self.preview
        self.update(**changes)

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


Suits = Callable[[Job], bool]
AHEAD = 8  # jobs among which a taker looks for one that suits it
PATIENCE = 3  # times that a job lets others go before


class JobQueue:
    """Jobs waiting for workers; owners take turns, so that nobody waits behind a flood."""

    def __init__(self) -> None:
        self._turns: deque[str] = deque()
        self._waiting: dict[str, deque[Job]] = {}
        self._idle: list[Suits] = []  # of those who are waiting in `take`
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

    def take(self, suits: Suits | None = None) -> Job | None:
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
                    if job := self._choose(mine):
                        self._remove(job)
                        return job
                    self._changed.wait()
            finally:
                self._idle.remove(mine)
                self._changed.notify_all()

    def _choose(self, mine: Suits) -> Job | None:
        order = self._order()
        if not order:
            return None
        candidates = order[:AHEAD] if order[0].passed_over < PATIENCE else order[:1]
        others = [suits for suits in self._idle if suits is not mine]
        free = [job for job in candidates if not any(suits(job) for suits in others)]
        found = next(filter(mine, candidates), free[0] if free else None)
        if found and found is not order[0]:
            order[0].passed_over += 1
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

    def in_order(self) -> list[Job]:
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
