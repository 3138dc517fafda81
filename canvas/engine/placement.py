"""Loads the components of a model as its memory plan says, and places the pipeline."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from canvas.engine import encode_first, quantization
from canvas.engine.device import Device
from canvas.models.download import LocalModel

if TYPE_CHECKING:
    from canvas.engine.memory_plan import MemoryPlan

NOTE_ATTRIBUTE = "_memory_note"
EMBEDDINGS_DIR = "prompt_embeds"
DENOISER, ENCODER = "transformer", "text_encoder"


def planned_components(local: LocalModel, device: Device, plan: MemoryPlan) -> dict[str, Any]:
    """The components that `from_pretrained` does not load itself; None for those that come later."""
    components: dict[str, Any] = {
        name: quantization.load_component(local, name, device)
        for name, _ in local.components
        if plan.offload != "encode-first" or name != DENOISER
    }
    if plan.offload == "encode-first":
        return components | {DENOISER: None, ENCODER: None}
    for name in plan.quantized:
        components[name] = quantization.load_quantized(local, name, plan.quantization, device)
    return components


def place(pipeline: Any, local: LocalModel, device: Device, plan: MemoryPlan) -> Any:
    """Move a loaded pipeline to the device as planned."""
    if plan.offload == "model":
        pipeline.enable_model_cpu_offload(device=device.name)
    elif plan.offload == "group":
        import torch

        pipeline.enable_group_offload(
            onload_device=torch.device(device.name),
            offload_device=torch.device("cpu"),
            offload_type="leaf_level",
            use_stream=True,
        )
    else:
        pipeline = pipeline.to(device.name)
    if plan.offload == "encode-first":
        encode_first.attach(pipeline, _encode_first(local, device, plan))
    vae = getattr(pipeline, "vae", None)
    # Not AutoencoderTiny, whose tiles fit only a scale of 8 and four latent channels.
    if plan.tiling and vae is not None and type(vae).__name__ != "AutoencoderTiny" and hasattr(vae, "enable_tiling"):
        vae.enable_tiling()
    if vae is not None and plan.note:
        vars(vae)[NOTE_ATTRIBUTE] = plan.note
    return pipeline


def plan_note(pipeline: Any) -> str:
    """What the memory plan of the pipeline changes, for the record of an image."""
    vae = getattr(pipeline, "vae", None)
    return str(vars(vae).get(NOTE_ATTRIBUTE, "")) if vae is not None else ""


def _encode_first(local: LocalModel, device: Device, plan: MemoryPlan) -> encode_first.EncodeFirst:
    def load(component: str) -> Any:
        with quantization.FROM_PRETRAINED_LOCK:
            if component in plan.quantized:
                module = quantization.load_quantized(local, component, plan.quantization, device)
            elif local.component(component) is not None:
                module = quantization.load_component(local, component, device)
            else:
                module = quantization.load_plain(local, component, device)
        return module.to(device.name)

    in_cache = local.path.parent.name == "snapshots"
    scheme = plan.quantization if ENCODER in plan.quantized else "none"
    folder = local.path.parent.parent / EMBEDDINGS_DIR / f"{local.path.name}-{scheme}-{device.dtype}"
    return encode_first.EncodeFirst(
        partial(load, ENCODER), partial(load, DENOISER), denoiser_name=DENOISER, cache=folder if in_cache else None
    )
