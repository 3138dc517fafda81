"""Steps as they are done: the time that is left, previews now and then, and the way to stop."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from canvas.engine.preview import Preview
from canvas.errors import GenerationCancelled
from canvas.request import GenerationRequest, ProgressUpdate

if TYPE_CHECKING:
    import threading

    import torch
    from PIL.Image import Image

    from canvas.engine.unet_hooks import UNetHooks

PREVIEW_INTERVAL = 0.5
# Nobody sees more of a picture that is done sooner, and small ones would feel the cost.
PREVIEW_DELAY = 0.25
PREVIEW_SHARE = 0.02  # of the time at most
# Until the first picture is decoded, decoding is thought to take as long as this many steps.
DECODE_COST_IN_STEPS = 1.5


class StepCallback:
    """What diffusers calls after each step (`callback_on_step_end`) of one request."""

    def __init__(
        self,
        request: GenerationRequest,
        denoiser: UNetHooks,
        on_step: Callable[[ProgressUpdate], None],
        cancelled: threading.Event,
    ) -> None:
        self._request = request
        self._denoiser = denoiser
        self._on_step = on_step
        self._cancelled = cancelled
        self._index = 0
        self._times: list[float] = []  # when each step of the present picture was done
        self._decoding: float | None = None  # seconds
        self._next_preview = time.perf_counter() + PREVIEW_DELAY
        self._pending_preview: Preview | None = None
        self._step_before: torch.cuda.Event | None = None

    def begin(self, index: int) -> None:
        """Start with picture `index`."""
        self._stop_if_cancelled()
        self._index = index
        self._times = []
        self._pending_preview = self._step_before = None

    def finish(self) -> None:
        """The present picture is decoded."""
        if self._times:
            self._decoding = time.perf_counter() - self._times[-1]

    def __call__(self, pipeline: Any, step: int, _: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        """Report the step; raises GenerationCancelled when the job was stopped."""
        self._stop_if_cancelled()
        self._sync_previous_step(tensors["latents"])
        self._times.append(time.perf_counter())
        num_steps = int(pipeline.num_timesteps)
        self._on_step(
            ProgressUpdate(
                step=step + 1,
                num_steps=num_steps,
                image_index=self._index,
                num_images=self._request.num_images,
                seconds_left=self._seconds_left(num_steps),
                preview=self._preview(pipeline, tensors) if step + 1 < num_steps else None,
            )
        )
        return {}

    def _stop_if_cancelled(self) -> None:
        if self._cancelled.is_set():
            raise GenerationCancelled("Stopped.")

    def _sync_previous_step(self, latents: torch.Tensor) -> None:
        """Be one step ahead of a GPU and no more: it never idles, and Stop stops it soon."""
        import torch

        if not latents.is_cuda:
            return
        step = torch.cuda.Event(blocking=True)
        step.record()
        if self._step_before:
            self._step_before.synchronize()
        self._step_before = step

    def _seconds_left(self, num_steps: int) -> float | None:
        if len(self._times) < 2:  # the first step holds the text encoder and first-time work
            return None
        step_time = (self._times[-1] - self._times[0]) / (len(self._times) - 1)
        decoding = DECODE_COST_IN_STEPS * step_time if self._decoding is None else self._decoding
        images_after = self._request.num_images - self._index - 1
        steps = num_steps - len(self._times) + images_after * num_steps
        return steps * step_time + (images_after + 1) * decoding

    def _preview(self, pipeline: Any, tensors: dict[str, Any]) -> Image | None:
        started = time.perf_counter()
        if self._pending_preview is None:
            if started < self._next_preview:
                return None
            latents = self._denoiser.predict_x0()
            if latents is None and tensors["latents"].ndim == 4:
                latents = tensors["latents"]
            if latents is None:
                return None
            self._pending_preview = Preview(latents, pipeline)
        if not self._pending_preview.is_ready():
            return None
        preview, self._pending_preview = self._pending_preview.image(), None
        now = time.perf_counter()
        pause = max(PREVIEW_INTERVAL, (now - started) / PREVIEW_SHARE)
        self._next_preview = now + pause
        return preview
