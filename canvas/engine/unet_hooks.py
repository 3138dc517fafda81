"""The denoising model of a pipeline during one run: float32 around it, a fresh scheduler."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from canvas.engine.preview import predicted_latents
from canvas.schedulers import SCHEDULERS

if TYPE_CHECKING:
    import torch


def round_up_size(pipeline: Any, size: tuple[int, int]) -> tuple[int, int]:
    """The smallest size in pixels of at least `size` that whole latents make."""
    scale = getattr(pipeline, "vae_scale_factor", 8)
    width, height = (-(-side // scale) * scale for side in size)
    return width, height


class UNetHooks:
    """Keeps the latents in float32 around a UNet of fewer bits, and its last prediction.

    The rounding of sixteen bits then happens once a step inside the UNet and does not
    add up over the steps. Pipelines without a UNet are left as they are.
    """

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline
        self._unet: Any = getattr(pipeline, "unet", None)
        # Diffusers looks for it in all modules, which takes as long as a layer of a small model.
        self._dtype = self._unet.dtype if self._unet is not None else None
        self._seen: tuple[Any, Any] | None = None
        self._output: Any = None

    @property
    def has_unet(self) -> bool:
        """Whether noise in the layout of a UNet can be handed to the pipeline."""
        return self._unet is not None

    @contextmanager
    def attached(self) -> Iterator[UNetHooks]:
        """Hook into the UNet for the time of the block."""
        hooks: list[Any] = []
        if self._unet is not None:
            hooks = [
                self._unet.register_forward_pre_hook(self._before, with_kwargs=True),
                self._unet.register_forward_hook(self._after),
            ]
        try:
            yield self
        finally:
            for hook in hooks:
                hook.remove()
            self._seen = self._output = None

    def noise(self, size: tuple[int, int], generator: torch.Generator) -> torch.Tensor:
        """The first latents, drawn as diffusers draws them in float32 on the CPU."""
        import torch

        scale = self._pipeline.vae_scale_factor
        width, height = round_up_size(self._pipeline, size)
        shape = (1, self._unet.config.in_channels, height // scale, width // scale)
        return torch.randn(shape, generator=generator, dtype=torch.float32)

    def predict_x0(self) -> torch.Tensor | None:
        """The clean latents that the UNet saw in its last step, guidance included."""
        if self._seen is None or self._output is None:
            return None
        noisy, timestep = self._seen
        output = self._output
        if len(output) == 2:
            without, wanted = output.chunk(2)
            output = without + self._pipeline.guidance_scale * (wanted - without)
        # Inpainting models see the mask and the masked picture in further channels.
        noisy = noisy[:1, : output.shape[1]]
        return predicted_latents(noisy, output, float(timestep), self._pipeline.scheduler)

    def _before(self, _: Any, args: tuple[Any, ...], kwargs: Any) -> tuple[Any, Any]:
        noisy, timestep, *others = args
        self._seen = (noisy, timestep)
        return (noisy.to(self._dtype), _to_device(noisy, timestep), *others), kwargs

    def _after(self, _: Any, __: Any, result: tuple[torch.Tensor, ...]) -> tuple[Any, ...]:
        self._output = result[0].float()
        return (self._output, *result[1:])


def _to_device(sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    """The timestep on the sample's device: filled in there, as a copy would wait for a GPU."""
    if sample.device == timestep.device:
        return timestep
    return sample.new_full((1,), float(timestep))


@contextmanager
def temporary_scheduler(pipeline: Any, name: str, num_inference_steps: int) -> Iterator[None]:
    """Put a new scheduler on the pipeline for one picture; the model's own comes back after it.

    It is made from the model's own configuration, so no state of an earlier run leaks in.
    """
    own = pipeline.scheduler
    if name in SCHEDULERS and hasattr(own, "alphas_cumprod"):
        pipeline.scheduler = build_scheduler(own.config, name, num_inference_steps)
        _pin_timesteps_to_cpu(pipeline.scheduler)
    try:
        yield
    finally:
        pipeline.scheduler = own


def _pin_timesteps_to_cpu(scheduler: Any) -> None:
    """Let its timesteps lie where the rest of it is, so that a step need not wait for a GPU."""
    usual = scheduler.set_timesteps

    def set_timesteps(*args: Any, device: Any = None, **options: Any) -> None:
        usual(*args, device="cpu", **options)

    scheduler.set_timesteps = set_timesteps


def build_scheduler(config: Any, name: str, num_inference_steps: int) -> Any:
    """A scheduler of that name from a model's scheduler configuration."""
    import diffusers

    spec = SCHEDULERS[name]
    options: dict[str, Any] = dict(spec.options)
    if name == "LCM":  # its teacher must have had at least as many steps
        options["original_inference_steps"] = max(50, num_inference_steps)
    return getattr(diffusers, spec.class_name).from_config(config, **options)
