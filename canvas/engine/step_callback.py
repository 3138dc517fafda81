"""During denoising: hooks on the UNet, and a callback after each step for progress, previews and cancellation."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import TYPE_CHECKING, Any

from PIL.Image import Image

from canvas.engine.preview import Preview, predict_from_steps, predict_original_sample, spatial_latents
from canvas.errors import GenerationCancelled
from canvas.request import GenerationRequest, ProgressUpdate
from canvas.schedulers import MODEL_DEFAULT, SCHEDULERS

if TYPE_CHECKING:
    import torch

PREVIEW_INTERVAL = 0.5  # seconds
# No preview of an image that is finished sooner: it would slow down small models noticeably.
PREVIEW_DELAY = 0.25  # seconds
PREVIEW_SHARE = 0.02  # of the time at most
# Until the first image is decoded, decoding is assumed to take as long as this many steps.
DECODE_COST_IN_STEPS = 1.5


class UNetHooks:
    """Keeps the latents in float32 outside a 16-bit UNet, and remembers its last prediction.

    Rounding errors then occur only inside the UNet and do not accumulate over the steps.
    Pipelines without a UNet are not changed.
    """

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline
        # Kandinsky's has other latents, and no `vae`.
        self._unet: Any = getattr(pipeline, "unet", None) if hasattr(pipeline, "vae") else None
        # Cached: diffusers' property searches all modules, as slow as a layer of a small model.
        self._dtype = self._unet.dtype if self._unet is not None else None
        self._input: tuple[Any, Any] | None = None  # sample, timestep
        self._output: Any = None

    @property
    def has_unet(self) -> bool:
        """Whether the pipeline accepts latents in the layout of a UNet."""
        return self._unet is not None

    @contextmanager
    def attached(self) -> Iterator[UNetHooks]:
        handles: list[Any] = []
        if self._unet is not None:
            handles = [
                self._unet.register_forward_pre_hook(self._before, with_kwargs=True),
                self._unet.register_forward_hook(self._after),
            ]
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()
            self._input = self._output = None

    def make_noise(self, size: tuple[int, int], generator: torch.Generator) -> torch.Tensor:
        """The initial latents, (1, C, H, W) in float32 on the CPU, as diffusers makes them.

        `size` is a multiple of the model's `size_step`.
        """
        import torch

        scale = self._pipeline.vae_scale_factor
        shape = (1, self._unet.config.in_channels, size[1] // scale, size[0] // scale)
        return torch.randn(shape, generator=generator, dtype=torch.float32)

    def predict_x0(self) -> torch.Tensor | None:
        """The clean latents predicted in the last step, including classifier-free guidance."""
        if self._input is None or self._output is None:
            return None
        sample, timestep = self._input
        noise_pred = self._output
        if len(noise_pred) == 2:
            uncond, cond = noise_pred.chunk(2)
            noise_pred = uncond + self._pipeline.guidance_scale * (cond - uncond)
        # Inpainting models get the mask and the masked image in additional channels.
        sample = sample[:1, : noise_pred.shape[1]]
        return predict_original_sample(sample, noise_pred, float(timestep), self._pipeline.scheduler)

    def _before(self, _: Any, args: tuple[Any, ...], kwargs: Any) -> tuple[Any, Any]:
        sample, timestep, *others = args
        self._input = (sample, timestep)
        if (condition := kwargs.get("timestep_cond")) is not None:  # the guidance of an LCM, in float32
            kwargs = {**kwargs, "timestep_cond": condition.to(self._dtype)}
        return (sample.to(self._dtype), _to_device(timestep, sample), *others), kwargs

    def _after(self, _: Any, __: Any, result: tuple[torch.Tensor, ...]) -> tuple[Any, ...]:
        self._output = result[0].float()
        return (self._output, *result[1:])


def _to_device(timestep: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
    """The timestep on the sample's device; filled in there, because a copy would synchronize."""
    if sample.device == timestep.device:
        return timestep
    return sample.new_full((1,), float(timestep))


@contextmanager
def temporary_scheduler(pipeline: Any, name: str, num_inference_steps: int) -> Iterator[None]:
    """Use a new scheduler, made from the model's configuration, inside the block.

    A new one has no state of earlier images.
    """
    original = pipeline.scheduler
    if name == MODEL_DEFAULT:
        pipeline.scheduler = type(original).from_config(original.config)
    elif name in SCHEDULERS and hasattr(original, "alphas_cumprod"):
        pipeline.scheduler = build_scheduler(original.config, name, num_inference_steps)
    if pipeline.scheduler is not original and hasattr(original, "alphas_cumprod"):
        _pin_timesteps_to_cpu(pipeline.scheduler)
    try:
        yield
    finally:
        pipeline.scheduler = original


def _pin_timesteps_to_cpu(scheduler: Any) -> None:
    """Keep the timesteps on the CPU like the rest of the scheduler: steps need not wait then."""
    original = scheduler.set_timesteps

    def set_timesteps(*args: Any, device: Any = None, **options: Any) -> None:
        original(*args, device="cpu", **options)

    scheduler.set_timesteps = set_timesteps


def build_scheduler(config: Any, name: str, num_inference_steps: int) -> Any:
    """A scheduler of SCHEDULERS from a model's scheduler configuration."""
    import diffusers

    spec = SCHEDULERS[name]
    class_name = spec.class_name or config["_class_name"]
    options: dict[str, Any] = dict(spec.options)
    if name in ("LCM", "TCD"):  # they require at least as many original steps
        options["original_inference_steps"] = max(50, num_inference_steps)
    return getattr(diffusers, class_name).from_config(config, **options)


@contextmanager
def replaced_method(owner: Any, name: str, method: Callable[..., Any]) -> Iterator[None]:
    """Replace a method of one object, such as the `forward` of a module, inside the block."""
    own = vars(owner).get(name)
    setattr(owner, name, method)
    try:
        yield
    finally:
        if own is None:
            delattr(owner, name)
        else:
            setattr(owner, name, own)


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

    with replaced_method(scheduler, "step", step):
        yield


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
