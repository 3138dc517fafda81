"""int8 copies, GGUF transformers and prompts that are encoded first, with a tiny FLUX.2-klein."""

from __future__ import annotations

import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from canvas.catalog import ModelSpec, parse_model
from canvas.engine import encode_first, quantization
from canvas.engine.device import Device
from canvas.engine.generate import generate
from canvas.engine.lora_adapters import applied_loras
from canvas.engine.pipeline_cache import PipelineCache
from canvas.errors import ModelUnavailable
from canvas.models.download import LocalModel
from canvas.models.loras import read_lora
from canvas.request import GeneratedImage, GenerationRequest
from tests.tiny_klein import write_tiny_klein

BF16 = Device("cpu", "bfloat16", "for the test")
REVISION = "a" * 40
SPEC = parse_model(
    "tiny-klein",
    {
        "name": "org/klein",
        "type": "auto",
        "resolution": 64,
        "num_inference_steps": 2,
        "guidance_scale": 1.0,
        "scheduler": "Model default",
    },
)


@pytest.fixture(scope="module")
def klein_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("klein") / "klein"
    return write_tiny_klein(folder)


@pytest.fixture
def local(klein_folder: Path, tmp_path: Path) -> LocalModel:
    """The model in the layout of the Hub cache."""
    folder = tmp_path / "models--org--klein" / "snapshots" / REVISION
    shutil.copytree(klein_folder, folder)
    return LocalModel(folder, "org/klein", REVISION)


def draw(local: LocalModel, prompt: str = "a fox", **choices: str) -> GeneratedImage:
    cache = PipelineCache(BF16, quantization=choices.get("quantization"), offload=choices.get("offload"))
    return draw_with(cache.get(SPEC, local), prompt)


def draw_with(pipeline: Any, prompt: str = "a fox", spec: ModelSpec = SPEC) -> GeneratedImage:
    request = GenerationRequest(prompt, seed=1, width=64, height=64).with_defaults(spec)
    [image] = generate(pipeline, request, spec=spec, device=BF16, on_step=lambda _: None, cancelled=threading.Event())
    return image


def pixels(image: GeneratedImage) -> np.ndarray:
    return np.asarray(image.image).astype(int)


@pytest.mark.slow
def test_int8_image_is_close_and_recorded(local: LocalModel) -> None:
    plain, int8 = draw(local, offload="none", quantization="none"), draw(local, quantization="int8", offload="none")
    assert plain.notes == ()
    assert int8.notes == ("int8 weights",)
    assert abs(pixels(plain) - pixels(int8)).mean() < 8


@pytest.mark.slow
def test_second_start_reads_the_copy(local: LocalModel, monkeypatch: pytest.MonkeyPatch) -> None:
    first = draw(local, quantization="int8", offload="none")
    copies = {path.parent.name for path in local.path.parent.parent.glob("quantized/*/*/complete")}
    assert copies == {"transformer", "text_encoder"}

    def refuse(scheme: str) -> None:
        raise AssertionError(f"quantized again: {scheme}")

    monkeypatch.setattr(quantization, "_torchao_config", refuse)
    assert (pixels(draw(local, quantization="int8", offload="none")) == pixels(first)).all()


@pytest.mark.slow
def test_incomplete_copy_is_made_again(local: LocalModel) -> None:
    first = draw(local, quantization="int8", offload="none")
    [marker] = local.path.parent.parent.glob("quantized/*/transformer/complete")
    marker.unlink()
    (marker.parent / "diffusion_pytorch_model.safetensors").write_bytes(b"cut")
    assert (pixels(draw(local, quantization="int8", offload="none")) == pixels(first)).all()
    assert marker.exists()


@pytest.mark.slow
def test_unused_encoder_layers_change_nothing(local: LocalModel) -> None:
    assert quantization.used_encoder_layers(local) == 28
    encoder = quantization.load_plain(local, "text_encoder", BF16)
    assert len(encoder.model.layers) == 28
    whole = draw(local, quantization="none", offload="none")
    reduced = draw(local, quantization="none", offload="encode-first")
    assert (pixels(whole) == pixels(reduced)).all()


@pytest.mark.slow
def test_one_of_encoder_and_denoiser_is_in_memory(local: LocalModel) -> None:
    cache = PipelineCache(BF16, quantization="none", offload="encode-first")
    pipeline = cache.get(SPEC, local)
    assert pipeline.text_encoder is None and pipeline.transformer is None
    image = draw_with(pipeline)
    assert pipeline.text_encoder is None and pipeline.transformer is not None
    assert image.notes == ("offload: encode-first",)
    assert (pixels(draw_with(pipeline, "a house")) != pixels(image)).any()
    assert (pixels(draw_with(pipeline)) == pixels(image)).all()


@pytest.mark.slow
@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_lora_acts_on_a_denoiser_that_is_loaded_later(local: LocalModel, tmp_path: Path, quantization: str) -> None:
    from diffusers import Flux2KleinPipeline, Flux2Transformer2DModel
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    transformer = Flux2Transformer2DModel.from_pretrained(local.path / "transformer")
    transformer.add_adapter(LoraConfig(r=4, init_lora_weights=False, target_modules=["to_q", "to_k"]))
    tensors = get_peft_model_state_dict(transformer)
    Flux2KleinPipeline.save_lora_weights(tmp_path, transformer_lora_layers=tensors, weight_name="style.safetensors")
    pipeline = PipelineCache(BF16, quantization=quantization, offload="encode-first").get(SPEC, local)
    plain = draw_with(pipeline)
    lora = read_lora(tmp_path / "style.safetensors")
    with applied_loras(pipeline, [(lora, 1.0)]):
        changed = draw_with(pipeline)
        assert (pixels(draw_with(pipeline, "a house")) != pixels(changed)).any()
        assert (pixels(draw_with(pipeline)) == pixels(changed)).all()
    assert (pixels(changed) != pixels(plain)).any()
    assert (pixels(draw_with(pipeline)) == pixels(plain)).all()


@pytest.mark.slow
def test_known_prompts_need_no_encoder_after_a_restart(local: LocalModel, monkeypatch: pytest.MonkeyPatch) -> None:
    first = draw(local, quantization="none", offload="encode-first")
    [stored] = local.path.parent.parent.glob("prompt_embeds/*/*.safetensors")
    monkeypatch.setattr(encode_first.EncodeFirst, "_encode", lambda *_: pytest.fail("encoded again"))
    assert (pixels(draw(local, quantization="none", offload="encode-first")) == pixels(first)).all()
    assert "fox" not in stored.name
    monkeypatch.undo()
    stored.write_bytes(b"damaged")
    assert (pixels(draw(local, quantization="none", offload="encode-first")) == pixels(first)).all()


@pytest.mark.slow
def test_gguf_transformer_is_loaded_with_the_configuration_of_its_pipeline(
    local: LocalModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    file = write_gguf(local.path / "transformer", tmp_path / "klein-Q8_0.gguf")
    part = replace(local, components=(("transformer", file),))
    image = draw(part, quantization="none", offload="none")
    assert abs(pixels(image) - pixels(draw(local, quantization="none", offload="none"))).mean() < 8


def test_missing_gguf_package_is_a_sentence(local: LocalModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantization.importlib.util, "find_spec", lambda _: None)
    part = replace(local, components=(("transformer", tmp_path / "klein.gguf"),))
    with pytest.raises(ModelUnavailable, match="need the package gguf"):
        quantization.load_component(part, "transformer", BF16)


def write_gguf(transformer: Path, file: Path) -> Path:
    """The weights of a diffusers transformer in Q8_0, with the names that the authors use."""
    import gguf
    from safetensors.torch import load_file

    tensors = load_file(transformer / "diffusion_pytorch_model.safetensors")
    writer = gguf.GGUFWriter(file, "flux")
    for name, tensor in original_names(tensors).items():
        values = tensor.float().numpy()
        if values.ndim == 2 and values.shape[1] % 32 == 0:
            packed = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(name, packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def original_names(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The inverse of diffusers' conversion of FLUX.2 transformers."""
    renamed = {
        "x_embedder": "img_in",
        "context_embedder": "txt_in",
        "time_guidance_embed.timestep_embedder.linear_1": "time_in.in_layer",
        "time_guidance_embed.timestep_embedder.linear_2": "time_in.out_layer",
        "double_stream_modulation_img.linear": "double_stream_modulation_img.lin",
        "double_stream_modulation_txt.linear": "double_stream_modulation_txt.lin",
        "single_stream_modulation.linear": "single_stream_modulation.lin",
        "proj_out": "final_layer.linear",
    }
    double = {
        "attn.norm_q": "img_attn.norm.query_norm",
        "attn.norm_k": "img_attn.norm.key_norm",
        "attn.norm_added_q": "txt_attn.norm.query_norm",
        "attn.norm_added_k": "txt_attn.norm.key_norm",
        "attn.to_out.0": "img_attn.proj",
        "attn.to_add_out": "txt_attn.proj",
        "ff.linear_in": "img_mlp.0",
        "ff.linear_out": "img_mlp.2",
        "ff_context.linear_in": "txt_mlp.0",
        "ff_context.linear_out": "txt_mlp.2",
    }
    single = {
        "attn.to_qkv_mlp_proj": "linear1",
        "attn.to_out": "linear2",
        "attn.norm_q": "norm.query_norm",
        "attn.norm_k": "norm.key_norm",
    }
    found: dict[str, torch.Tensor] = {}
    fused: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        stem, _, kind = name.rpartition(".")
        parts = stem.split(".")
        if stem == "norm_out.linear":  # the halves are swapped
            scale, shift = tensor.chunk(2)
            found["final_layer.adaLN_modulation.1.weight"] = torch.cat([shift, scale])
        elif stem in renamed:
            found[f"{renamed[stem]}.{kind}"] = tensor
        elif parts[0] == "transformer_blocks":
            rest = ".".join(parts[2:])
            if rest in double:
                kind = "scale" if "norm" in rest else kind
                found[f"double_blocks.{parts[1]}.{double[rest]}.{kind}"] = tensor
            else:
                image = "add" not in rest
                key = f"double_blocks.{parts[1]}.{'img' if image else 'txt'}_attn.qkv.weight"
                fused.setdefault(key, {})[rest.replace("add_", "").replace("_proj", "").replace("to_", "")[-1]] = tensor
        else:
            rest = ".".join(parts[2:])
            kind = "scale" if "norm" in rest else kind
            found[f"single_blocks.{parts[1]}.{single[rest]}.{kind}"] = tensor
    return found | {key: torch.cat([parts["q"], parts["k"], parts["v"]]) for key, parts in fused.items()}
