from __future__ import annotations

import pytest

from canvas.models.lora_formats import is_cross_attention, is_lora, kind_of, lora_family, unet_tensors

CROSS = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_{}.lora_down.weight"
OLD = "down_blocks.0.attentions.0.attn2.processor.to_k_lora.down.weight"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("unet.x.lora_A.weight", True),
        ("unet.x.lora_A.default.weight", True),
        ("lora_unet_x.hada_w1_a", True),
        ("lora_unet_x.lokr_w2", True),
        (OLD, True),
        ("unet.x.weight", False),
    ],
)
def test_a_lora_has_down_projections_or_products(name: str, expected: bool) -> None:
    assert is_lora({"alpha": (), name: (2, 8)}) is expected


@pytest.mark.parametrize(
    ("shapes", "family"),
    [
        ({CROSS.format("k"): (4, 768), CROSS.format("v"): (4, 768)}, "sd1"),
        ({CROSS.format("v"): (4, 2048)}, "stable_diffusion_xl"),
        ({OLD: (4, 1024)}, "sd2"),
        ({CROSS.format("k"): (4, 768), CROSS.format("v"): (4, 1024)}, ""),
        ({CROSS.format("k"): (4, 99)}, ""),
        ({CROSS.format("q"): (4, 768)}, ""),
        ({"lora_unet_down_blocks_0_double_blocks_0.lora_down.weight": (4, 768)}, ""),
        ({"layers.0.attention.to_q.lora_A.weight": (16, 100)}, ""),
        ({"layers.0.attention.to_q.lora_B.weight": (100, 3840)}, ""),
        ({"layers.0.attention.to_q.lora_A.weight": (16, 3840, 1)}, ""),
        ({"text_encoder.layers.0.mlp.lora_A.weight": (16, 3840)}, ""),
        ({"down_blocks_0.double_blocks.0.lora_A.weight": (16, 3840)}, "flux"),
        ({}, ""),
    ],
)
def test_the_family_is_read_from_names_and_widths(shapes: dict[str, tuple[int, ...]], family: str) -> None:
    assert lora_family({"alpha": (), **shapes}) == family


def test_down_projections_of_the_unet() -> None:
    shapes = {
        CROSS.format("k"): (4, 768),
        OLD: (4, 768),
        CROSS.format("k").replace("lora_down", "lora_up"): (320, 4),
        "lora_unet_bias.lora_down.weight": (4,),
        "lora_te_text_model.lora_down.weight": (4, 768),
    }
    assert set(unet_tensors(shapes)) == {CROSS.format("k"), OLD}
    assert [is_cross_attention(CROSS.format(layer)) for layer in "kvq"] == [True, True, False]
    assert not is_cross_attention(CROSS.format("k").replace("attn2", "attn1"))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("unet.conv_in.weight", "a whole model"),
        ("first_stage_model.decoder.conv_in.weight", "a VAE"),
        ("lora_controlnet", "a ControlNet"),
        ("string_to_param", "a textual inversion"),
    ],
)
def test_other_files_are_named_by_any_tensor(name: str, kind: str) -> None:
    assert kind_of({"alpha": (), name: (1, 8), "z": ()}) == kind
