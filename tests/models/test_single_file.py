"""The family of a single file, by its keys and shapes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from canvas.errors import ModelUnsupported
from canvas.models.single_file import detect_family, write_tokenizer

UNET = "model.diffusion_model.input_blocks.0.0.weight"
VAE = "first_stage_model.decoder.conv_in.weight"
XL = "conditioner.embedders.1.model.token_embedding.weight"
SD2 = "cond_stage_model.model.token_embedding.weight"
SD1 = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"


@pytest.mark.parametrize(
    ("encoder", "channels", "family"), [(XL, 4, "sdxl"), (SD2, 4, "sd21"), (SD1, 4, "sd15"), (SD1, 9, "sd15_inpaint")]
)
def test_the_family_has_an_encoder_and_channels(encoder: str, channels: int, family: str) -> None:
    shapes = {UNET: (320, channels, 3, 3), VAE: (512, 4, 3, 3), encoder: (49408, 768)}
    assert detect_family(shapes, "x") == family
    for missing in shapes:
        with pytest.raises(ModelUnsupported, match=r"^x\.safetensors is no complete checkpoint"):
            detect_family({name: shape for name, shape in shapes.items() if name != missing}, "x.safetensors")


@pytest.mark.parametrize(("encoder", "channels"), [(XL, 9), (SD2, 9), (SD1, 8)])
def test_unets_with_other_inputs_are_refused(encoder: str, channels: int) -> None:
    with pytest.raises(ModelUnsupported):
        detect_family({UNET: (320, channels, 3, 3), VAE: (1,), encoder: (1,)}, "x")


def test_the_tokenizer_is_that_of_clip(tmp_path: Path) -> None:
    from transformers import CLIPTokenizer

    write_tokenizer(tmp_path / "tokenizer", "!")
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path / "tokenizer")
    assert tokenizer("a Fox").input_ids == [49406, 320, 3240, 49407]
    assert tokenizer("狐 ÿ").input_ids[1:-1] == tokenizer("狐").input_ids[1:-1] + tokenizer("ÿ").input_ids[1:-1]
    assert (len(tokenizer), tokenizer.model_max_length, tokenizer.pad_token_id) == (49408, 77, 0)
    vocabulary = json.loads((tmp_path / "tokenizer" / "vocab.json").read_text(encoding="utf-8"))
    assert [vocabulary[token] for token in ("!", "a", "¡", "Ā", "!</w>", "<|endoftext|>")] == [
        0,
        64,
        94,
        188,
        256,
        49407,
    ]
