"""The memory plan: quantization, offload and tiling by the size of the model and the machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from canvas.catalog import ModelSpec
from canvas.engine.device import Device
from canvas.engine.memory_plan import ModelWeights, local_weights, plan_memory
from canvas.errors import InvalidInput
from canvas.models.download import LocalModel
from tests.tiny_klein import write_tiny_klein

GB = 10**9
KLEIN = ModelWeights(
    {"transformer": 7_750_000_000, "text_encoder": 8_050_000_000, "vae": 168_000_000},
    "Flux2KleinPipeline",
    frozenset({"transformer", "text_encoder"}),
)
SDXL = ModelWeights(
    {"unet": 5_140_000_000, "text_encoder": 246_000_000, "text_encoder_2": 1_390_000_000, "vae": 167_000_000},
    "StableDiffusionXLPipeline",
)
BF16 = Device("cpu", "bfloat16", "")
FP32 = Device("cpu", "float32", "")
CUDA = Device("cuda", "bfloat16", "")


@pytest.mark.parametrize(
    ("weights", "device", "free", "quantization", "offload"),
    [
        (KLEIN, BF16, 24, "none", "none"),
        (KLEIN, BF16, 14, "int8", "none"),
        (KLEIN, BF16, 8, "int8", "encode-first"),
        (KLEIN, FP32, 14, "int8-dynamic", "none"),
        (SDXL, BF16, 10, "none", "none"),
        (SDXL, BF16, 5, "none", "none"),  # a UNet has no smaller form on a CPU: loading it says so
        (KLEIN, CUDA, 24, "none", "none"),
        (KLEIN, CUDA, 12, "none", "model"),
        (KLEIN, CUDA, 8, "int8", "model"),
        (KLEIN, CUDA, 4, "none", "group"),
        (SDXL, CUDA, 8, "none", "model"),
        (SDXL, CUDA, 6, "none", "group"),
    ],
)
def test_plan_fits_into_the_memory(
    weights: ModelWeights, device: Device, free: int, quantization: str, offload: str
) -> None:
    plan = plan_memory(weights, device, free * GB, 32 * GB)
    assert (plan.quantization, plan.offload) == (quantization, offload)
    assert plan.peak_bytes <= free * GB or (device.name == "cpu" and weights is SDXL)


def test_plan_without_torchao() -> None:
    plan = plan_memory(KLEIN, BF16, 12 * GB, 16 * GB, torchao=False)
    assert (plan.quantization, plan.offload) == ("none", "encode-first")
    with pytest.raises(InvalidInput, match="need the package torchao"):
        plan_memory(KLEIN, BF16, 12 * GB, 16 * GB, quantization="int8", torchao=False)


def test_choices_are_kept() -> None:
    plan = plan_memory(KLEIN, BF16, 100 * GB, 100 * GB, quantization="int8")
    assert (plan.quantization, plan.offload) == ("int8", "none")
    plan = plan_memory(KLEIN, BF16, 100 * GB, 100 * GB, offload="encode-first")
    assert plan.offload == "encode-first"
    plan = plan_memory(KLEIN, CUDA, 100 * GB, 100 * GB, quantization="int8", offload="group")
    assert (plan.quantization, plan.offload) == ("int8", "group")


@pytest.mark.parametrize(
    ("weights", "options", "message"),
    [
        (SDXL, {"quantization": "int8"}, "this one has a UNet"),
        (KLEIN, {"offload": "model"}, "needs an NVIDIA GPU"),
        (SDXL, {"offload": "encode-first"}, "FLUX.2-klein and Z-Image only"),
    ],
)
def test_impossible_choices_are_refused(weights: ModelWeights, options: dict[str, str], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        plan_memory(weights, BF16, 20 * GB, 20 * GB, **options)  # type: ignore[arg-type]


def test_the_vae_decodes_in_tiles_where_memory_is_short() -> None:
    decoding = 1024 * 1024 * 1100 * 2
    assert not plan_memory(SDXL, CUDA, 12 * GB, 12 * GB, decoding_bytes=decoding).tiling
    assert plan_memory(SDXL, CUDA, 8 * GB, 8 * GB, decoding_bytes=4 * GB).tiling


def test_plan_is_described() -> None:
    plan = plan_memory(KLEIN, BF16, 9 * GB, 16 * GB)
    assert str(plan.text) == "int8, 5.9 GB of 16.0 GB"
    assert plan.note == "int8 weights, offload: encode-first"
    assert plan_memory(SDXL, BF16, 20 * GB, 24 * GB).note == ""


def test_weights_are_read_from_the_files(tmp_path: Path, tiny_spec: ModelSpec) -> None:
    folder = write_tiny_klein(tmp_path / "klein")
    weights = local_weights(LocalModel(folder, "org/klein"), BF16)
    assert weights.pipeline_class == "Flux2KleinPipeline"
    assert weights.quantizable == {"transformer", "text_encoder"}
    stored = (folder / "transformer" / "diffusion_pytorch_model.safetensors").stat().st_size
    assert abs(weights.components["transformer"] - stored) < 20_000, "stored in 16 bits, too"
    assert weights.encoders == weights.components["text_encoder"]
    unet = local_weights(LocalModel(Path(tiny_spec.name), tiny_spec.name), FP32)
    assert set(unet.components) == {"unet", "text_encoder", "vae"}
    assert not unet.quantizable
