"""Converts a UNet and a VAE decoder to OpenVINO graphs with weights in 16 bits."""

from __future__ import annotations

import json
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from canvas.engine.openvino.runtime import import_openvino
from canvas.engine.optimizations.deepcache import CACHE_BRANCH_DEPTH, UNetForward

if TYPE_CHECKING:
    import torch

UNET, SHALLOW_UNET, DECODER, UNET_CONFIG = "unet.xml", "unet_shallow.xml", "vae_decoder.xml", "unet.json"
SIZES = "sizes.json"  # bytes of each file
# Configurations whose UNets take other inputs than those of Stable Diffusion and SDXL.
UNSUPPORTED = ("class_embed_type", "num_class_embeds", "time_cond_proj_dim", "encoder_hid_dim_type")
PROMPT_TOKENS = 77


def is_supported(pipeline: Any) -> bool:
    """Whether the pipeline's denoiser is a UNet with the inputs of Stable Diffusion or SDXL."""
    from diffusers import UNet2DConditionModel

    unet = getattr(pipeline, "unet", None)
    if not isinstance(unet, UNet2DConditionModel):
        return False
    config: Any = pipeline.unet.config
    plain = not any(config[name] for name in UNSUPPORTED) and config.attention_type == "default"
    return plain and config.addition_embed_type in (None, "text_time")


def convert_unet(unet: Any, folder: Path) -> None:
    """Write the graphs of the full and the shallow pass of `UNetForward` into a new folder.

    The conversion computes in float32; afterwards the UNet has its own dtype again. Raises
    OSError or RuntimeError.
    """
    passes = UNetForward(unet, CACHE_BRANCH_DEPTH)
    with _in_float32(unet), _fused_attention(unet), new_folder(folder) as part:
        inputs = example_inputs(unet.config)
        _save(lambda *each: passes.full_forward(*each[:3], **added_options(each[3:])), inputs, part / UNET)
        import torch

        with torch.no_grad():
            features = passes.full_forward(*inputs[:3], **added_options(inputs[3:]))[1]
        _save(
            lambda *each: passes.shallow_forward(*each[:4], **added_options(each[4:])),
            (*inputs[:3], features, *inputs[3:]),
            part / SHALLOW_UNET,
        )
        (part / UNET_CONFIG).write_text(json.dumps(dict(unet.config)), encoding="utf-8")


def convert_decoder(vae: Any, folder: Path) -> None:
    """Write the graph of `vae.decoder` into a new folder; raises OSError or RuntimeError."""
    import torch

    channels = vae.config.latent_channels
    with _in_float32(vae.decoder), new_folder(folder) as part:
        decode = partial(type(vae.decoder).forward, vae.decoder)
        _save(lambda sample: (decode(sample),), (torch.randn(1, channels, 9, 13),), part / DECODER)


def example_inputs(config: Any, size: tuple[int, int] | None = None, tokens: int = PROMPT_TOKENS) -> tuple[Any, ...]:
    """Random inputs of a UNet for latents of (height, width).

    The default size is none that the UNet can halve at each level without a rest: then
    diffusers passes the sizes on to the upsampling layers, and the graph fits all sizes.
    """
    import torch

    factor = 2 ** (len(config["block_out_channels"]) - 1)
    height, width = size or (2 * factor + 1, 3 * factor + 1)
    generator = torch.Generator().manual_seed(0)
    inputs = [
        torch.randn(1, config["in_channels"], height, width, generator=generator),
        torch.tensor([500.0]),
        torch.randn(1, tokens, config["cross_attention_dim"], generator=generator),
    ]
    if config["addition_embed_type"]:
        pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
        inputs.append(torch.randn(1, pooled, generator=generator))
        inputs.append(torch.tensor([[8.0 * height, 8.0 * width, 0, 0, 8.0 * height, 8.0 * width]]))
    return tuple(inputs)


def conversion_bytes(module: torch.nn.Module) -> int:
    """Memory that a conversion and a first pass need besides the module: float32 weights."""
    return sum(4 * parameter.numel() for parameter in module.parameters())


def added_options(added: tuple[Any, ...]) -> dict[str, Any]:
    """SDXL's inputs after the first three as keyword arguments of a UNet."""
    return {"added_cond_kwargs": dict(zip(("text_embeds", "time_ids"), added, strict=True))} if added else {}


def _as_module(function: Any) -> Any:
    """A torch module around a function, for tracing.

    The modules that the function uses are no part of it: their weights become constants of the
    graph, and the tracer need not build a script module of each layer, half of all the time.
    """
    import torch

    class Pass(torch.nn.Module):
        def forward(self, *inputs: Any) -> Any:
            return function(*inputs)

    return Pass().eval()


def _save(function: Callable[..., Any], inputs: tuple[Any, ...], path: Path) -> None:
    import torch

    openvino = import_openvino()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tracer, about Python values
        # Without a second trace, which takes as long as everything else.
        script = torch.jit.trace(_as_module(function), inputs, check_trace=False, strict=False)
        model = openvino.convert_model(script, example_input=inputs)
    for node, tensor in zip(model.inputs, inputs, strict=True):
        node.get_node().set_partial_shape(openvino.PartialShape(_dynamic_shape(tensor)))
    model.validate_nodes_and_infer_types()
    openvino.save_model(model, str(path), compress_to_fp16=True)


def _dynamic_shape(tensor: torch.Tensor) -> list[int]:
    """The shape of an input; the batch, height and width, and the number of tokens may change."""
    shape = list(tensor.shape)
    if tensor.ndim == 1:  # the timestep
        return shape
    return {4: [-1, *shape[1:2], -1, -1], 3: [-1, -1, *shape[2:]], 2: [-1, *shape[1:]]}[tensor.ndim]


@contextmanager
def _in_float32(module: Any) -> Iterator[None]:
    """Parameters in float32 inside the block; 16-bit values are restored exactly."""
    dtypes = {name: parameter.dtype for name, parameter in module.named_parameters()}
    module.requires_grad_(False)  # otherwise the tracer takes no parameter as a constant
    for parameter in module.parameters():
        parameter.data = parameter.data.float()
    try:
        yield
    finally:
        for name, parameter in module.named_parameters():
            parameter.data = parameter.data.to(dtypes[name])


@contextmanager
def _fused_attention(unet: Any) -> Iterator[None]:
    """torch's scaled dot product attention, for which OpenVINO has an operation."""
    from diffusers.models.attention_processor import AttnProcessor2_0

    before = unet.attn_processors
    unet.set_attn_processor(AttnProcessor2_0())
    try:
        yield
    finally:
        unet.set_attn_processor(before)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder that appears under its name when the block ends without an error."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, ignore_cleanup_errors=True) as temporary:
        part = Path(temporary) / "part"
        part.mkdir()
        yield part
        sizes = {path.name: path.stat().st_size for path in part.iterdir()}
        (part / SIZES).write_text(json.dumps(sizes), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
