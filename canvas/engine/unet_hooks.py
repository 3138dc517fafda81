"""Hooks on a pipeline's UNet, and a scheduler of its own, for the denoising of one image."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from canvas.engine.preview import predict_original_sample
from canvas.schedulers import MODEL_DEFAULT, SCHEDULERS

if TYPE_CHECKING:
    import torch


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
