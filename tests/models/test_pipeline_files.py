"""File selection for layouts of repositories on the Hub."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canvas.catalog import MODELS
from canvas.errors import ModelCorrupted
from canvas.models import pipeline_files
from canvas.models.pipeline_files import WeightVariant, select_files, select_local_files

INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "requires_safety_checker": True,
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
    "image_encoder": [None, None],
    "scheduler": ["diffusers", "PNDMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
CONFIG_FILES = {
    "model_index.json",
    "feature_extractor/preprocessor_config.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "tokenizer/merges.txt",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    "unet/config.json",
    "vae/config.json",
}
UNUSED = {
    "README.md",
    "images/fox.png",
    "v1-5-pruned.safetensors",
    "model.safetensors",
    "safety_checker/config.json",
    "safety_checker/model.safetensors",
    "text_encoder/flax_model.msgpack",
    "text_encoder/model.onnx",
    "unet/diffusion_pytorch_model.non_ema.bin",
    "unet/diffusion_pytorch_model.non_ema.safetensors",
    "unet/openvino_model.bin",
    "unet/model.onnx_data",
    "vae_1_0/config.json",
    "vae_1_0/diffusion_pytorch_model.safetensors",
    "vae/old/diffusion_pytorch_model.safetensors",
}
BIN = {"text_encoder/pytorch_model.bin", "unet/diffusion_pytorch_model.bin", "vae/diffusion_pytorch_model.bin"}
SAFE = {
    "text_encoder/model.safetensors",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
}
BIN_16 = {name.replace(".bin", ".fp16.bin") for name in BIN}
SAFE_16 = {name.replace(".safetensors", ".fp16.safetensors") for name in SAFE}
UNET_16 = "unet/diffusion_pytorch_model.fp16.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
INDEX_FILE = "unet/diffusion_pytorch_model.safetensors.index.json"
SHARDS = {f"unet/diffusion_pytorch_model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)}


@pytest.mark.parametrize(
    ("present", "half_precision", "expected"),
    [
        (BIN | SAFE | BIN_16 | SAFE_16, False, SAFE),
        (BIN | SAFE | BIN_16 | SAFE_16, True, SAFE_16),
        (BIN, True, BIN),
        (BIN | BIN_16, True, BIN_16),
        (BIN | SAFE - {VAE}, False, BIN),
        (BIN | SAFE | SAFE_16 - {UNET_16}, True, SAFE),
        (BIN_16 | SAFE, True, SAFE),
        (SAFE_16, False, SAFE_16),
    ],
)
def test_one_weight_variant_for_all_components(present: set[str], half_precision: bool, expected: set[str]) -> None:
    selection = select_files(present | CONFIG_FILES | UNUSED, INDEX, half_precision=half_precision)
    assert set(selection.files) == expected | CONFIG_FILES
    assert len(selection.files) == len(set(selection.files))


@given(st.sets(st.sampled_from(sorted(BIN | SAFE | BIN_16 | SAFE_16))), st.booleans())
def test_every_selection_is_complete_or_an_error(present: set[str], half_precision: bool) -> None:
    variants = (SAFE, SAFE_16, BIN, BIN_16)
    components = {name.partition("/")[0] for name in SAFE}
    try:
        selection = select_files(present | CONFIG_FILES | UNUSED, INDEX, half_precision=half_precision)
    except ModelCorrupted:
        assert any(not any(name.startswith(f"{each}/") for name in present) for each in components)
    else:
        chosen = set(selection.files) - CONFIG_FILES
        assert chosen <= present
        assert sorted(name.partition("/")[0] for name in chosen) == sorted(components)  # one file each
        if any(variant <= present for variant in variants):
            assert chosen in variants
            assert not selection.exceptions


def test_all_shards_are_selected_with_their_index() -> None:
    present = CONFIG_FILES | UNUSED | SAFE - {"unet/diffusion_pytorch_model.safetensors"} | SHARDS
    selection = select_files(present | {INDEX_FILE}, INDEX, half_precision=False)
    assert SHARDS | {INDEX_FILE} <= set(selection.files)
    assert selection.weights == WeightVariant("safetensors", None)


@pytest.mark.parametrize("missing", [INDEX_FILE, min(SHARDS)])
def test_incomplete_shards_are_an_error(missing: str) -> None:
    present = CONFIG_FILES | SAFE - {"unet/diffusion_pytorch_model.safetensors"} | SHARDS | {INDEX_FILE}
    with pytest.raises(ModelCorrupted, match="incomplete: text_encoder, unet, vae"):
        select_files(present - {missing}, INDEX, half_precision=False)


@pytest.mark.parametrize("missing", sorted(CONFIG_FILES - {"model_index.json"}) + sorted(SAFE))
def test_error_names_the_incomplete_component(missing: str) -> None:
    with pytest.raises(ModelCorrupted, match=f"incomplete: {missing.partition('/')[0]}"):
        select_files((CONFIG_FILES | SAFE) - {missing}, INDEX, half_precision=False)


def test_component_names_cannot_leave_the_folder() -> None:
    index = {**INDEX, "..": ["diffusers", "UNet2DConditionModel"], "none": ["diffusers", None]}
    present = CONFIG_FILES | SAFE | {"../config.json", "../diffusion_pytorch_model.safetensors"}
    selection = select_files(present, index, half_precision=False)
    assert set(selection.files) == CONFIG_FILES | SAFE


@pytest.mark.parametrize("text", [None, "", "{", "[]", "3"])
def test_invalid_index_is_an_error(text: str | None) -> None:
    with pytest.raises(ModelCorrupted, match="org/model"):
        pipeline_files.parse_index(text, "org/model")


def test_index_without_components_is_an_error() -> None:
    with pytest.raises(ModelCorrupted, match="all components"):
        select_files({"model_index.json"}, {"_class_name": "Odd"}, half_precision=False)


def test_built_in_model_is_complete() -> None:
    assert pipeline_files.is_complete(Path(MODELS["starter"].name))


@pytest.mark.parametrize("missing", ["unet/diffusion_pytorch_model.safetensors", "vae/config.json"])
def test_folder_without_a_file_is_incomplete(tiny_folder: Path, tmp_path: Path, missing: str) -> None:
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "copy"))
    assert pipeline_files.is_complete(folder)
    (folder / missing).write_bytes(b"")
    if missing.endswith(".json"):
        (folder / missing).unlink()
    assert not pipeline_files.is_complete(folder)


def test_a_bin_file_may_be_replaced_by_a_complete_safetensors_file(
    tiny_folder: Path, tiny_bin_folder: Path, tmp_path: Path
) -> None:
    tree = pipeline_files.file_sizes(tiny_bin_folder)
    folder = Path(shutil.copytree(tiny_bin_folder, tmp_path / "copy"))
    assert pipeline_files.is_complete(folder, tree)
    weights = folder / "unet" / "diffusion_pytorch_model.bin"
    weights.unlink()
    assert not pipeline_files.is_complete(folder, tree)
    replacement = weights.with_suffix(".safetensors")
    shutil.copy(tiny_folder / "unet" / replacement.name, replacement)
    assert pipeline_files.is_complete(folder, tree)
    replacement.write_bytes(replacement.read_bytes()[:-1])
    assert not pipeline_files.is_complete(folder, tree)


def test_complete_single_file_is_valid(tiny_folder: Path) -> None:
    pipeline_files.check_single_file(tiny_folder / "unet" / "diffusion_pytorch_model.safetensors")


def test_truncated_single_file_is_an_error(tiny_folder: Path, tmp_path: Path) -> None:
    content = (tiny_folder / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content[:-1])
    with pytest.raises(ModelCorrupted, match="damaged"):
        pipeline_files.check_single_file(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00",
        b"<html>not found</html>",
        (2**63).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        len(header := json.dumps({"a": 1}).encode()).to_bytes(8, "little") + header,
    ],
)
def test_other_files_are_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelCorrupted, match=r"not a safetensors file|damaged"):
        pipeline_files.check_single_file(tmp_path / "model.safetensors")


def test_pickled_single_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").write_bytes(b"")
    with pytest.raises(ModelCorrupted, match=r"must be a \.safetensors file"):
        pipeline_files.check_single_file(tmp_path / "model.ckpt")


@pytest.mark.parametrize("count", [1, 2])
def test_shards_of_half_precision_have_their_variant_in_the_index(count: int) -> None:
    stem = "unet/diffusion_pytorch_model"
    shards = {f"{stem}.fp16-0000{n + 1}-of-0000{count}.safetensors" for n in range(count)}
    present = CONFIG_FILES | SAFE_16 - {UNET_16} | shards | {f"{stem}.safetensors.index.fp16.json"}
    selection = select_files(present, INDEX, half_precision=True)
    assert set(selection.files) == present
    assert selection.weights == WeightVariant("safetensors", "fp16")


def test_safetensors_of_any_precision_come_before_bin() -> None:
    present = CONFIG_FILES | SAFE - {"unet/diffusion_pytorch_model.safetensors"} | {UNET_16} | BIN - {VAE}
    present -= {"vae/diffusion_pytorch_model.bin"}
    selection = select_files(present, INDEX, half_precision=False)
    assert selection.exceptions == {"unet": WeightVariant("safetensors", "fp16")}
    assert UNET_16 in selection.files


@pytest.mark.parametrize(
    ("tokenizer", "complete"),
    [
        ({"tokenizer_config.json", "vocab.json", "merges.txt"}, True),
        ({"tokenizer_config.json", "vocab.json", "merges.txt", "added_tokens.json"}, True),
        ({"tokenizer_config.json", "tokenizer.json"}, True),
        ({"tokenizer_config.json", "spiece.model"}, True),
        ({"tokenizer_config.json", "vocab.json"}, False),
        ({"tokenizer_config.json"}, False),
        ({"tokenizer.json", "spiece.model"}, False),
    ],
)
def test_a_tokenizer_has_one_of_three_vocabularies(tokenizer: set[str], complete: bool) -> None:
    others = {name for name in CONFIG_FILES | SAFE if not name.startswith("tokenizer/")}
    present = others | {f"tokenizer/{name}" for name in tokenizer}
    if complete:
        assert present <= set(select_files(present, INDEX, half_precision=False).files)
    else:
        with pytest.raises(ModelCorrupted, match="incomplete: tokenizer"):
            select_files(present, INDEX, half_precision=False)


def test_components_from_other_sources_need_no_weights() -> None:
    present = CONFIG_FILES | SAFE - {VAE}
    assert set(select_files(present, INDEX, half_precision=False, without=["vae"]).files) == present


@pytest.mark.parametrize("missing", ["", ".fp16"])
def test_a_folder_is_complete_in_either_precision(tiny_full_folder: Path, tmp_path: Path, missing: str) -> None:
    tree = {name: size for name, size in pipeline_files.file_sizes(tiny_full_folder).items() if ".bin" not in name}
    folder = Path(shutil.copytree(tiny_full_folder, tmp_path / "copy"))
    for part in ("unet", "vae"):
        (folder / part / f"diffusion_pytorch_model{missing}.safetensors").unlink()
    (folder / "text_encoder" / f"model{missing}.safetensors").unlink()
    assert pipeline_files.is_complete(folder, tree)
    (folder / "unet" / "config.json").write_text("{}")
    assert not pipeline_files.is_complete(folder, tree)


def test_full_precision_is_selected_in_a_folder_with_both(tiny_full_folder: Path) -> None:
    assert select_local_files(tiny_full_folder).weights == WeightVariant("safetensors", None)
    half = select_local_files(tiny_full_folder, half_precision=True)
    assert half.weights == WeightVariant("safetensors", "fp16")


def test_bin_weights_are_those_that_the_pipeline_needs(
    tiny_folder: Path, tiny_bin_folder: Path, tmp_path: Path
) -> None:
    assert set(pipeline_files.bin_weights(tiny_bin_folder)) == BIN
    assert pipeline_files.bin_weights(tiny_folder) == []
    assert pipeline_files.bin_weights(tmp_path) == []
    assert {pipeline_files.safetensors_name(name) for name in BIN} == SAFE


def test_a_file_without_tensors_is_valid(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    pipeline_files.check_single_file(tmp_path / "model.safetensors")
