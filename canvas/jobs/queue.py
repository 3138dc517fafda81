"""The fair queue of waiting jobs, the registry of all jobs, and the limits of a public server."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from canvas.errors import ContentBlocked, InvalidInput, LazyMessage, QueueFull
from canvas.jobs.job import Job
from canvas.request import GenerationRequest

Affinity = Callable[[Job], bool]
LOOKAHEAD = 8  # jobs among which a worker looks for one that it prefers
MAX_SKIPS = 3  # times that a job can be skipped
KEEP_SECONDS = 3600.0  # that finished jobs are kept


class Visitor(str):
    """The owner id of a visitor without an account, with the network of the client's address.

    Anybody can be many visitors, so limits and turns also count by `network`.
    """

    network: str

    def __new__(cls, owner: str, network: str = "") -> Visitor:
        """`network` as by `client_network`."""
        visitor = super().__new__(cls, owner)
        visitor.network = network
        return visitor


def account_of(owner: str) -> str:
    """Whose turn it is: the network of a visitor; a login, an API key or an account is its own."""
    return owner.network if isinstance(owner, Visitor) else owner


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


@dataclass(frozen=True)
class Limits:
    """Unfinished jobs per owner and per network of visitors, and pixels × steps × images per job.

    None is unlimited.
    """

    max_queued: int | None = None
    max_queued_per_network: int | None = None
    max_pixel_steps: int | None = None
    allow_downloads: bool = True

    def check_download(self, model_key: str) -> None:
        """Raise ContentBlocked if downloads are not allowed."""
        if not self.allow_downloads:
            raise ContentBlocked(
                LazyMessage(
                    "{model} is not completely installed on this server, and visitors cannot "
                    "download models. Choose another model or the preset Quality. The owner of "
                    "the server can run: python -m canvas download {model}",
                    model=model_key,
                )
            )

    def check_queue(self, owner: str, owners: Iterable[str], num_new: int = 1) -> None:
        """Raise QueueFull if `num_new` more jobs exceed a limit; `owners` are those of all unfinished jobs."""
        owners = list(owners)
        queued = owners.count(owner)
        if self.max_queued is not None and queued + num_new > self.max_queued:
            raise QueueFull(
                LazyMessage(
                    "You have {queued} jobs in the queue; this server allows {allowed}. Wait "
                    "for one to finish, or remove one from the queue.",
                    queued=max(queued, self.max_queued),
                    allowed=self.max_queued,
                )
            )
        if self.max_queued_per_network is None or not isinstance(owner, Visitor):
            return
        if list(map(account_of, owners)).count(owner.network) + num_new > self.max_queued_per_network:
            raise QueueFull(
                LazyMessage(
                    "The visitors from your network have {allowed} jobs in the queue; this server allows no more. "
                    "Wait for one to finish.",
                    allowed=self.max_queued_per_network,
                )
            )

    def check(self, request: GenerationRequest) -> None:
        """Raise InvalidInput if a request with defaults exceeds a limit."""
        if self.max_pixel_steps is None:
            return
        steps = request.num_inference_steps or 1
        pixels = (request.width or 0) * (request.height or 0) * request.num_images
        if pixels * steps > self.max_pixel_steps:
            size = f"{request.num_images} × {request.width} × {request.height}"
            max_steps = self.max_pixel_steps // pixels
            message = LazyMessage(
                "{size} pixels are too many for this server. Generate a smaller image or fewer images.", size=size
            )
            if max_steps:
                message = LazyMessage(
                    "Steps must be at most {allowed} on this server for {size} pixels (got {steps}).",
                    allowed=max_steps,
                    size=size,
                    steps=steps,
                )
            raise InvalidInput("num_inference_steps", steps, message=message)


# A public server is shared: 4 images of 512 × 512 pixels with 50 steps at a time are enough.
# An address can be that of a family or an office: it may have the jobs of two visitors.
PUBLIC = Limits(max_queued=6, max_queued_per_network=12, max_pixel_steps=512 * 512 * 50 * 4, allow_downloads=False)
PRIVATE = Limits()
