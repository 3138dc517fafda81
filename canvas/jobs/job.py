"""A job: its status, its progress, and waiting for its images."""

from __future__ import annotations

import secrets
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextvars import Context, copy_context
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, Literal

from canvas.dynamic_prompts import escape
from canvas.errors import CanvasError, GenerationCancelled
from canvas.formatting import format_progress
from canvas.models.download import DownloadProgress
from canvas.request import FINISHED_STATUSES, GeneratedImage, GenerationRequest, JobStatus, ProgressUpdate

BAR_FORMAT = "{desc} |{bar:24}| {percentage:3.0f} %{postfix}"


@dataclass(eq=False)
class Job:
    """A generation or download of one owner, independent of the browser tab that submitted it.

    `request` is None for a download; `requests` are all that a dynamic prompt stands for, the
    first of them `request`, and `current` is the index of the running one. `client` is one of
    `request.CLIENTS`. `progress` is the latest `ProgressUpdate` or `DownloadProgress`. `id` cannot
    be guessed. `on_finish` is called once, before subscribers see the end. `context` is that of the
    submitter: ZeroGPU reads from it whose quota to charge.
    """

    owner: str
    kind: Literal["generate", "download"]
    model_key: str
    request: GenerationRequest | None = None
    client: str = "python"
    id: str = field(default_factory=lambda: secrets.token_hex(16))
    status: JobStatus = "queued"
    progress: Any = None
    preview: Any = field(default=None, repr=False)  # the latest small PIL image
    images: list[GeneratedImage] = field(default_factory=list)
    error: CanvasError | None = None
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    started_at: datetime | None = None
    finished_at: datetime | None = None
    cancelled: threading.Event = field(default_factory=threading.Event, repr=False)
    on_finish: Callable[[Job], None] | None = field(default=None, repr=False)
    context: Context = field(default_factory=copy_context, repr=False)
    node: str = ""  # where it runs or ran last
    attempts: int = 0  # that ended with a crashed worker
    skipped: int = 0  # times that a later job was taken first
    version: int = 0  # counts the changes
    requests: tuple[GenerationRequest, ...] = ()
    current: int = 0
    dynamic_request: GenerationRequest | None = None  # that stands for several
    _changed: threading.Condition = field(default_factory=threading.Condition, repr=False)

    def __post_init__(self) -> None:
        if self.request and not self.requests:
            self.requests = (self.request,)

    @property
    def num_images(self) -> int:
        """The images of all requests."""
        return sum(request.num_images for request in self.requests)

    @property
    def resumable_request(self) -> GenerationRequest:
        """The request that `Studio.submit` expands to this job's."""
        if self.dynamic_request is not None:
            return self.dynamic_request
        assert self.request is not None  # noqa: S101 - not a download
        prompt, negative_prompt = escape(self.request.prompt), escape(self.request.negative_prompt)
        return replace(self.request, prompt=prompt, negative_prompt=negative_prompt)

    def first_image(self, index: int) -> int:
        """The index of the first image of a request."""
        return sum(request.num_images for request in self.requests[:index])

    @property
    def finished(self) -> bool:
        return self.status in FINISHED_STATUSES

    def update(self, **changes: Any) -> None:
        """Set attributes and wake subscribers; does nothing once the job is finished."""
        with self._changed:
            if self.finished:
                return
            for name, value in changes.items():
                setattr(self, name, value)
            now = datetime.now(UTC)
            if self.status not in ("queued", *FINISHED_STATUSES) and self.started_at is None:
                self.started_at = now
            if self.finished:  # kept for an hour, so release what is large
                self.finished_at = now
                self.preview, self.context = None, Context()
            try:
                if self.finished and self.on_finish:
                    self.on_finish(self)
            finally:
                self.version += 1
                self._changed.notify_all()

    def report_progress(
        self,
        *,
        status: JobStatus | None = None,
        step: ProgressUpdate | None = None,
        download: DownloadProgress | None = None,
    ) -> None:
        """The backend's callback; after a restart `step` counts only the remaining images."""
        changes: dict[str, Any] = {} if status is None else {"status": status}
        if download is not None:
            changes["progress"] = download
        elif status == "loading":  # after the download
            changes["progress"] = None
        if step is not None:
            done = self.first_image(self.current + 1) - step.num_images
            changes["progress"] = replace(
                step, image_index=step.image_index + done, num_images=self.num_images, preview=None
            )
            changes["preview"] = step.preview or self.preview
        self.update(**changes)

    def cancel(self) -> None:
        """Cancel at once while queued, otherwise within one step."""
        self.cancelled.set()
        if self.status == "queued":
            self.update(status="cancelled", error=GenerationCancelled("Cancelled before it started."))

    def subscribe(self, timeout: float | None = None) -> Iterator[Job]:
        """Yield this job now and after every change until it is finished.

        Changes that are faster than the subscriber are merged. With a `timeout` in seconds it
        also yields when nothing has changed for that long.
        """
        version = -1
        while True:
            with self._changed:
                self._changed.wait_for(partial(self._is_newer, version), timeout)
                version, finished = self.version, self.finished
            yield self
            if finished:
                return

    def _is_newer(self, version: int) -> bool:
        return self.version != version

    def wait(self, timeout: float | None = None) -> list[GeneratedImage]:
        """Block until the job is finished; returns its images or raises its error."""
        with self._changed:
            if not self._changed.wait_for(lambda: self.finished, timeout):
                raise CanvasError(f"The job is still {self.status} after {timeout:g} seconds.")
        if self.error:
            raise self.error
        return self.images


class ImageList(list[GeneratedImage]):
    """Images that a notebook displays when they are the last value of a cell."""

    def _repr_html_(self) -> str:
        return "\n".join(image._repr_html_() or "" for image in self)


def wait_with_progress(job: Job) -> ImageList:
    """`Job.wait`, with a progress bar in notebooks; an interrupt cancels the job."""
    try:
        if _in_notebook():
            _show_progress_bar(job)
        return ImageList(job.wait())
    except KeyboardInterrupt:
        job.cancel()
        raise


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")  # loaded in any notebook, an optional package
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


def _show_progress_bar(job: Job) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # without ipywidgets tqdm shows a text bar, and warns
        from tqdm.auto import tqdm
    title = job.request.prompt[:40] if job.request else job.model_key
    with tqdm(total=1.0, desc=title, bar_format=BAR_FORMAT, leave=False) as bar:
        for _ in job.subscribe():
            bar.n, text = format_progress(job.status, job.progress)
            bar.set_postfix_str(text)
