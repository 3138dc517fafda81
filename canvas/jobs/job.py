"""How far something is, in a number and in words, for whoever waits for it."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator
from contextvars import Context, copy_context
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, Literal

from canvas.errors import CanvasError, GenerationCancelled
from canvas.formatting import format_bytes, format_duration
from canvas.request import (
    FINISHED_STATUSES,
    GeneratedImage,
    GenerationRequest,
    JobStatus,
    ProgressUpdate,
)


@dataclass(eq=False)
class Job:
    """One thing to do for one owner; lives on when the tab that asked for it is closed.

    `request` is None for a download; `channel` is one of `request.CLIENTS`. `progress` is the
    engine's latest word: a `ProgressUpdate` of a picture or the bytes of a download. `id` cannot be
    guessed. `on_finish` is called once, before the watchers hear of the end. `context` is that
    of whoever asked: ZeroGPU finds there whose quota to charge.
    """

    owner: str
    kind: Literal["generate", "download"]
    model_key: str
    request: GenerationRequest | None = None
    client: str = "python"
    id: str = field(default_factory=lambda: secrets.token_hex(16))
    status: JobStatus = "queued"
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
    skipped: int = 0  # times that a later job went before
    version: int = 0
    _changed: threading.Condition = field(default_factory=threading.Condition, repr=False)

    @property
    def finished(self) -> bool:
        """Whether nothing more will happen."""
        return self.status in FINISHED_STATUSES

    def update(self, **changes: Any) -> None:
        """Set attributes and wake the watchers; a finished job stays as it ended."""
        with self._changed:
            if self.finished:
                return
            for name, value in changes.items():
                setattr(self, name, value)
            now = datetime.now(UTC)
            if self.status not in ("queued", *FINISHED_STATUSES) and self.started_at is None:
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

    def report_progress(
        self, *, status: JobStatus | None = None, step: ProgressUpdate | None = None
    ) -> None:
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

    def subscribe(self, timeout: float | None = None) -> Iterator[Job]:
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


def format_progress(status: str, progress: Any) -> tuple[float, str]:
    """How far a job is, 0 to 1, and what to say of it."""
    if progress is None:
        return 0.0, status
    if isinstance(progress, ProgressUpdate):
        note = f"step {progress.step} of {progress.num_steps}"
        if progress.num_images > 1:
            note = f"picture {progress.image_index + 1} of {progress.num_images}, {note}"
        return progress.fraction, note + _format_seconds_left(progress.seconds_left)
    done, total = progress.bytes_done, progress.bytes_total
    rate = format_bytes(int(progress.bytes_per_second))
    note = f"{format_bytes(done)} of {format_bytes(total)}, {rate}/s"
    return done / total if total else 1.0, note + _format_seconds_left(progress.seconds_left)


def _format_seconds_left(seconds: float | None) -> str:
    return "" if seconds is None else f", {format_duration(seconds)} left"
