"""Control images: ControlNets that add to what the denoiser of a loaded pipeline computes.

They act inside the denoiser's forward method instead of in diffusers' ControlNet pipelines: so every
pipeline of a family has them, cached steps of DeepCache skip them, and upscaling computes them by
tiles. `tests/engine/test_controlnet.py` compares the images with those of diffusers' pipelines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from canvas.engine.control_detectors import as_control_image
from canvas.engine.image_io import flatten_alpha, resize_to_fit
from canvas.engine.img2img import PreparedEdit
from canvas.engine.masks import WorkArea
from canvas.engine.optimizations.deepcache import CONTROLLED
from canvas.engine.quantization import FROM_PRETRAINED_LOCK
from canvas.engine.step_callback import replaced_method
from canvas.errors import InvalidInput, LazyMessage, ModelCorrupted
from canvas.guidance import ControlImage
from canvas.models import controlnets
from canvas.models.capabilities import capabilities_of
from canvas.request import GenerationRequest

if TYPE_CHECKING:
    import torch

Span = tuple[int, int]
# Modes of the union ControlNets of InstantX for FLUX.1, which choose one of their conditions
FLUX_MODES = {"canny": 0, "lineart": 0, "scribble": 0, "soft_edge": 0, "tile": 1, "depth": 2, "pose": 4}
# The arguments of FLUX.1's transformer that its ControlNets take, too
CONTROL_ARGUMENTS = (
    *("hidden_states", "timestep", "guidance", "pooled_projections", "encoder_hidden_states", "txt_ids", "img_ids"),
    "joint_attention_kwargs",
)


@dataclass(frozen=True)
class ControlInput:
    """A resolved control image with its pixels, the folder of its ControlNet and that of its detector."""

    item: ControlImage
    image: Image.Image
    folder: Path
    detector: Path | None = None


@dataclass(frozen=True)
class ControlUnit:
    """A ControlNet with its condition: pixels from 0 to 1, (1, 3, H, W); for FLUX.1 packed latents."""

    net: Any
    condition: torch.Tensor
    item: ControlImage

    def is_active(self, step: int, num_steps: int) -> bool:
        """Whether it acts in that step; as in diffusers, a step that is partly outside does not count."""
        inside = step / num_steps >= self.item.start and (step + 1) / num_steps <= self.item.end
        return inside and self.item.weight > 0


def check_control_task(request: GenerationRequest) -> None:
    """Raise InvalidInput if the task has no denoising steps that control images could guide."""
    if not request.needs_model:
        message = "Control images act with the upscaler detail only. Choose it, or remove them."
        raise InvalidInput("control_images", len(request.control_images), message=message)
    for item in request.control_images:
        if item.kind == "inpaint" and request.task != "inpaint":
            message = "A control image of the kind inpaint needs the task inpaint."
            raise InvalidInput("control_images", item.kind, message=message)


def load_controlnet(folder: Path, dtype: Any, device: str) -> Any:
    """Load a ControlNet; raises InvalidInput for other models, ModelCorrupted for damaged files."""
    import diffusers
    from safetensors import SafetensorError

    class_name, weights = controlnets.class_of(folder), controlnets.weights_of(folder)
    if class_name not in set(controlnets.CLASSES.values()) or weights is None:
        known = ", ".join(sorted(set(controlnets.CLASSES.values())))
        message = f"{folder.name} is a {class_name or '?'}, which this program does not run. It runs {known}."
        raise InvalidInput("control_images", folder.name, message=message)
    try:
        with FROM_PRETRAINED_LOCK:
            net = getattr(diffusers, class_name).from_pretrained(
                str(folder),
                dtype=dtype,
                variant="fp16" if ".fp16." in weights.name else None,
                use_safetensors=True,
                local_files_only=True,
            )
    except (OSError, ValueError, RuntimeError, LookupError, TypeError, SafetensorError) as error:
        text = "The ControlNet {name} cannot be loaded. Remove its files and download them again."
        raise ModelCorrupted(LazyMessage(text, name=folder.name)) from error
    return net.to(device).eval().requires_grad_(False)


def check_fits(net: Any, name: str, pipeline: Any) -> None:
    """Raise InvalidInput if the ControlNet was made for another family of models."""
    unet: Any = getattr(pipeline, "unet", None)
    transformer: Any = getattr(pipeline, "transformer", None)
    fits = False
    if type(net).__name__ == "ControlNetModel" and unet is not None:
        fits = (
            [block.out_channels for block in net.controlnet_down_blocks] == _residual_channels(unet)
            and net.config.cross_attention_dim == unet.config.cross_attention_dim
            and net.config.in_channels == unet.config.out_channels
            and net.config.addition_embed_type == unet.config.addition_embed_type
            # Its layers halve the condition from pixels to latents.
            and 2 ** (len(net.config.conditioning_embedding_out_channels) - 1) == pipeline.vae_scale_factor
        )
    elif type(net).__name__ == "FluxControlNetModel" and type(transformer).__name__ == "FluxTransformer2DModel":
        names = ("num_attention_heads", "attention_head_dim", "joint_attention_dim", "in_channels")
        fits = all(net.config[each] == transformer.config[each] for each in names)
    if not fits:
        text = "The ControlNet {name} does not fit this model. Choose one for {family}."
        family = capabilities_of(pipeline).family.label
        raise InvalidInput("control_images", name, message=LazyMessage(text, name=name, family=family))


def _residual_channels(unet: Any) -> list[int]:
    """The channels of the skip connections, to each of which a ControlNet adds a residual."""
    channels = [unet.conv_in.out_channels]
    for block in unet.down_blocks:
        channels += [resnet.out_channels for resnet in block.resnets]
        channels += [sampler.out_channels for sampler in getattr(block, "downsamplers", None) or ()]
    return channels


class Controls:
    """The control images of one request on a pipeline; `nets` are their ControlNets."""

    def __init__(self, pipeline: Any, inputs: Sequence[ControlInput], nets: Sequence[Any]) -> None:
        self._pipeline = pipeline
        self._inputs = inputs
        self._nets = nets
        self._units: list[ControlUnit] = []
        self._step = -1
        for given, net in zip(inputs, nets, strict=True):
            check_fits(net, given.item.model, pipeline)

    def prepare(self, request: GenerationRequest, area: WorkArea, edit: PreparedEdit | None) -> None:
        """Make the conditions of the part of the image that the model draws."""
        self._units = [
            ControlUnit(net, self._condition(given, net, request, area, edit), given.item)
            for given, net in zip(self._inputs, self._nets, strict=True)
        ]

    def start_image(self) -> None:
        """Call before the first step of each image."""
        self._step = -1

    def active(self) -> list[ControlUnit]:
        """The units that act in the present step."""
        num_steps = int(getattr(self._pipeline, "num_timesteps", None) or len(self._pipeline.scheduler.timesteps))
        return [unit for unit in self._units if unit.is_active(self._step, num_steps)]

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Let the ControlNets act inside the block."""
        unet = getattr(self._pipeline, "unet", None)
        denoiser = unet if unet is not None else self._pipeline.transformer
        with ExitStack() as stack:
            handle = denoiser.register_forward_pre_hook(self._count_step)
            stack.callback(handle.remove)
            if unet is None:
                forward = ControlledTransformer(self, denoiser.forward)
                stack.enter_context(replaced_method(denoiser, "forward", forward))
            elif "forward" in vars(denoiser):  # a hook that moves the weights to the GPU
                stack.enter_context(replaced_method(denoiser, "forward", ControlledUNet(self, denoiser.forward)))
            else:  # under the forward methods of DeepCache and of tiles
                vars(denoiser)[CONTROLLED] = ControlledUNet(self, denoiser.forward)
                stack.callback(vars(denoiser).pop, CONTROLLED)
            yield

    def _count_step(self, *_: Any) -> None:
        self._step += 1

    def _condition(
        self, given: ControlInput, net: Any, request: GenerationRequest, area: WorkArea, edit: PreparedEdit | None
    ) -> Any:
        import torch

        if edit is not None and given.item.image == request.image:
            fitted = edit.original  # with the margins of outpainting
        else:
            image = flatten_alpha(given.image, request.fill_color)
            fitted = resize_to_fit(image, area.result_size, given.item.resize_mode, "#000000")
        control = as_control_image(given.item, area.crop(fitted), given.detector)
        if type(net).__name__ == "FluxControlNetModel" and net.input_hint_block is None:
            return self._packed_latents(control)
        pixels = torch.from_numpy(np.asarray(control, dtype=np.float32) / 255).permute(2, 0, 1)[None]
        if given.item.kind == "inpaint" and edit is not None and edit.mask is not None:
            mask = np.asarray(area.crop_mask(edit.mask)) > 127
            pixels[:, :, torch.from_numpy(mask)] = -1.0  # how these ControlNets were trained
        return pixels.to(net.device, net.dtype)

    def _packed_latents(self, control: Image.Image) -> Any:
        import torch
        from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img import retrieve_latents

        pipeline, vae = self._pipeline, self._pipeline.vae
        pixels = pipeline.image_processor.preprocess(control).to(vae.device, vae.dtype)
        with torch.no_grad():
            latents = retrieve_latents(vae.encode(pixels), sample_mode="argmax")
        latents = (latents - vae.config.shift_factor) * vae.config.scaling_factor
        packed = pipeline._pack_latents(latents, *latents.shape)
        return packed.to(pipeline.transformer.dtype)


class ControlledUNet:
    """A forward method of a UNet with the residuals of ControlNets.

    `residuals` are those of the last call by skip connection, None if no ControlNet acted.
    """

    def __init__(self, controls: Controls, forward: Callable[..., Any]) -> None:
        self._controls = controls
        self._forward = forward
        self._crop: tuple[Span, Span] | None = None
        self.residuals: list[torch.Tensor] | None = None

    def use_tile(self, rows: Span | None, columns: Span | None, scale: int = 1) -> None:
        """Take the condition from a tile, in latents of `scale` pixels; None for the whole image."""
        self._crop = None
        if rows and columns:
            self._crop = (scale * rows[0], scale * rows[1]), (scale * columns[0], scale * columns[1])

    def __call__(self, sample: Any, timestep: Any, encoder_hidden_states: Any, *args: Any, **options: Any) -> Any:
        total: list[Any] | None = None
        for unit in self._controls.active():
            down, middle = unit.net(
                sample[:, : unit.net.config.in_channels],
                timestep,
                encoder_hidden_states=encoder_hidden_states,
                controlnet_cond=self._cropped(unit.condition),
                conditioning_scale=unit.item.weight,
                added_cond_kwargs=options.get("added_cond_kwargs"),
                return_dict=False,
            )
            total = _added(total, [*down, middle])
        self.residuals = total[:-1] if total else None
        if total:
            options |= {"down_block_additional_residuals": total[:-1], "mid_block_additional_residual": total[-1]}
        return self._forward(sample, timestep, encoder_hidden_states, *args, **options)

    def _cropped(self, condition: Any) -> Any:
        if self._crop is None:
            return condition
        (top, bottom), (left, right) = self._crop
        return condition[..., top:bottom, left:right]


class ControlledTransformer:
    """The same for the transformer of FLUX.1."""

    def __init__(self, controls: Controls, forward: Callable[..., Any]) -> None:
        self._controls = controls
        self._forward = forward

    def __call__(self, *args: Any, **options: Any) -> Any:
        import torch

        inputs = {name: options.get(name) for name in CONTROL_ARGUMENTS}
        blocks: list[Any] | None = None
        single_blocks: list[Any] | None = None
        repeat = False
        for unit in self._controls.active():
            config = unit.net.config
            mode = None
            if unit.net.union:
                mode = torch.tensor([[FLUX_MODES.get(unit.item.kind, 0)]], device=unit.condition.device)
            guidance = inputs["guidance"] if config.guidance_embeds else None
            if config.guidance_embeds and guidance is None:
                guidance = torch.full((1,), 3.5, device=unit.condition.device, dtype=unit.condition.dtype)
            found, found_single = unit.net(
                **{**inputs, "guidance": guidance},
                controlnet_cond=unit.condition,
                controlnet_mode=mode,
                conditioning_scale=unit.item.weight,
                return_dict=False,
            )
            blocks, single_blocks = _added(blocks, found), _added(single_blocks, found_single)
            repeat = repeat or unit.net.input_hint_block is not None
        if blocks or single_blocks:
            options |= {
                "controlnet_block_samples": blocks,
                "controlnet_single_block_samples": single_blocks,
                "controlnet_blocks_repeat": repeat,
            }
        return self._forward(*args, **options)


def _added(total: list[Any] | None, found: Sequence[Any] | None) -> list[Any] | None:
    if not found:
        return total
    return list(found) if total is None else [a + b for a, b in zip(total, found, strict=True)]
