"""The callback after each denoising step: progress, remaining time, previews, cancellation."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import TYPE_CHECKING, Any

from PIL.Image import Image

from canvas.engine.preview import Preview, predict_from_steps, spatial_latents
from canvas.errors import GenerationCancelled
from canvas.request import GenerationRequest, ProgressUpdate

if TYPE_CHECKING:
    import torch

    from canvas.engine.unet_hooks import UNetHooks

PREVIEW_INTERVAL = 0.5  # seconds
# No preview of an image that is finished sooner: it would slow down small models noticeably.
PREVIEW_DELAY = 0.25  # seconds
PREVIEW_SHARE = 0.02  # of the time at most
# Until the first image is decoded, decoding is assumed to take as long as this many steps.
DECODE_COST_IN_STEPS = 1.5


def raise_if_cancelled(cancelled: threading.Event) -> None:
    """Raise GenerationCancelled if the event is set."""
    if cancelled.is_set():
        raise GenerationCancelled("Stopped.")


@contextmanager
def called_on_each_step(pipeline: Any, callback: StepCallback) -> Iterator[None]:
    """Call the callback after each step of the scheduler, for pipelines that take none."""
    scheduler = pipeline.scheduler
    original = scheduler.step
    steps = count()

    def step(model_output: Any, timestep: Any, *args: Any, **options: Any) -> Any:
        result = original(model_output, timestep, *args, **options)
        latents = result[0] if isinstance(result, tuple) else result.prev_sample
        callback(pipeline, next(steps), timestep, {"latents": latents})
        return result

    scheduler.step = step
    try:
        yield
    finally:
        scheduler.step = original


class StepCallback:
    """The pipeline's `callback_on_step_end` for one request."""

    def __init__(
        self,
        request: GenerationRequest,
        hooks: UNetHooks,
        on_step: Callable[[ProgressUpdate], None],
        cancelled: threading.Event,
    ) -> None:
        self._request = request
        self._hooks = hooks
        self._on_step = on_step
        self._cancelled = cancelled
        self._image_index = 0
        self._step_times: list[float] = []  # when each step of this image ended
        self._decoding: float | None = None  # seconds
        self._next_preview = time.perf_counter() + PREVIEW_DELAY
        self._pending_preview: Preview | None = None
        self._previous_step: torch.cuda.Event | None = None
        self._previous_latents: torch.Tensor | None = None
        self._size = (1, 1)

    def start_image(self, index: int, size: tuple[int, int] = (1, 1)) -> None:
        """Call before the first step of each image; `size` is that at which the model works."""
        raise_if_cancelled(self._cancelled)
        self._image_index = index
        self._step_times = []
        self._pending_preview = self._previous_step = self._previous_latents = None
        self._size = size

    def finish_image(self) -> None:
        """Call when the image is decoded."""
        if self._step_times:
            self._decoding = time.perf_counter() - self._step_times[-1]

    def __call__(self, pipeline: Any, step: int, _: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        """Report the step; raises GenerationCancelled."""
        raise_if_cancelled(self._cancelled)
        self._sync_previous_step(tensors["latents"])
        self._step_times.append(time.perf_counter())
        num_steps = int(getattr(pipeline, "num_timesteps", None) or len(pipeline.scheduler.timesteps))
        self._on_step(
            ProgressUpdate(
                step=step + 1,
                num_steps=num_steps,
                image_index=self._image_index,
                num_images=self._request.num_images,
                seconds_left=self._seconds_left(num_steps),
                preview=self._preview(pipeline, tensors) if step + 1 < num_steps else None,
            )
        )
        return {}

    def _sync_previous_step(self, latents: torch.Tensor) -> None:
        """Let the CPU run one step ahead of the GPU: it never idles and can be cancelled soon."""
        import torch

        if not latents.is_cuda:
            return
        step = torch.cuda.Event(blocking=True)
        step.record()
        if self._previous_step:
            self._previous_step.synchronize()
        self._previous_step = step

    def _seconds_left(self, num_steps: int) -> float | None:
        if len(self._step_times) < 2:  # the first step includes text encoding and warm-up
            return None
        step_time = (self._step_times[-1] - self._step_times[0]) / (len(self._step_times) - 1)
        decoding = DECODE_COST_IN_STEPS * step_time if self._decoding is None else self._decoding
        images_after = self._request.num_images - self._image_index - 1
        steps = num_steps - len(self._step_times) + images_after * num_steps
        return steps * step_time + (images_after + 1) * decoding

    def _preview(self, pipeline: Any, tensors: dict[str, Any]) -> Image | None:
        started = time.perf_counter()
        previous, self._previous_latents = self._previous_latents, tensors["latents"]
        if self._pending_preview is None:
            if started < self._next_preview:
                return None
            latents = self._hooks.predict_x0()
            if latents is not None:
                self._pending_preview = Preview(latents, pipeline)
            else:
                latents = predict_from_steps(previous, tensors["latents"], pipeline.scheduler)
                latents = spatial_latents(latents, pipeline, self._size)
                if latents is None:
                    return None
                self._pending_preview = Preview(latents, pipeline, raw=True)
        if not self._pending_preview.is_ready():
            return None
        image, self._pending_preview = self._pending_preview.image(), None
        now = time.perf_counter()
        self._next_preview = now + max(PREVIEW_INTERVAL, (now - started) / PREVIEW_SHARE)
        return image
