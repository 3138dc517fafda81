"""What a file of weights is, and the family that a LoRA is for, by the names and shapes of its tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping

from canvas.models.families import FAMILIES

Shapes = Mapping[str, tuple[int, ...]]

DOWN_WEIGHT = re.compile(
    r"[._](lora_down|lora_A|lora\.down|lora_linear_layer\.down)\.(?:\w+\.)?weight$"
    r"|(?<=_lora)\.down\.weight$"
)
LYCORIS = re.compile(r"\.(hada_w[12]_[ab]|hada_t[12]|lokr_w[12](?:_[ab])?|lokr_t2)$")
UNET_PREFIXES = ("lora_unet_", "unet.", "base_model.model.unet.", "lycoris_")
# Attention processors of the first LoRAs of diffusers have no prefix.
OLD_UNET = re.compile(r"(down_blocks|mid_block|up_blocks)\.\S+\.processor\.")
# By the width of the text embeddings that cross-attention reads.
UNET_FAMILIES = {768: "sd1", 1024: "sd2", 2048: "stable_diffusion_xl"}
LABELS = {
    **{family.key: family.label for family in FAMILIES},
    **{"sd1": "Stable Diffusion 1.x", "sd2": "Stable Diffusion 2.x", "video": "a video model"},
}
# Tensor names of transformers, the first match counts.
TRANSFORMER_FAMILIES = {
    "video": r"\bblocks[._]\d+[._](self|cross)_attn|audio_|video_|temporal",
    "flux2_klein": r"to_qkv_mlp_proj|(double|single)_stream_modulation",
    "qwen_image": r"transformer_blocks[._](\d+[._](img|txt)_(mlp|mod)|(19|[2-5]\d)[._]attn[._](add_|to_))",
    "flux": r"(double|single)_blocks[._]\d+|single_transformer_blocks[._]\d+",
    "stable_diffusion_3": r"joint_blocks[._]\d+|transformer_blocks[._]\d+[._]attn[._]add_[qkv]_proj",
    "sana": r"transformer_blocks[._]\d+[._].*conv_(inverted|depth|point)",
}
# Both have blocks `layers.0.attention`.
LAYER_WIDTHS = {3840: "z_image", 2304: "lumina2"}
OTHER_KIND = "a file with other weights"
KINDS = {
    "a textual inversion": r"(^|\.)(emb_params|clip_[lg]|string_to_param)$|^<.*>$",
    "a VAE": r"^(first_stage_model\.)?(decoder\.conv_in|encoder\.conv_in)\.weight$",
    "a ControlNet": r"^(control_model\.|controlnet_|lora_controlnet$)",
    "a whole model": r"^(model\.diffusion_model\.|(unet\.)?conv_in\.weight$|double_blocks\.0\.img_attn\.qkv\.weight$)",
}


def is_lora(shapes: Shapes) -> bool:
    """Whether the tensors are those of a LoRA, LoHa or LoKr."""
    return any(DOWN_WEIGHT.search(name) or LYCORIS.search(name) for name in shapes)


def kind_of(shapes: Shapes) -> str:
    """What the file is, for weights that are no LoRA."""
    return next((kind for kind, names in KINDS.items() if any(re.search(names, name) for name in shapes)), OTHER_KIND)


def lora_family(shapes: Shapes) -> str:
    """The family that the LoRA is for, a key of LABELS; "" if unknown."""
    if any(name.startswith("lora_te2_") for name in shapes):
        return "stable_diffusion_xl"
    widths = {shape[1] for name, shape in unet_tensors(shapes).items() if is_cross_attention(name)}
    if len(widths) == 1 and (family := UNET_FAMILIES.get(widths.pop())):
        return family
    if any(is_unet_name(name) and re.search(r"(down|up|input|output|mid|middle)_blocks?", name) for name in shapes):
        return ""
    for family, names in TRANSFORMER_FAMILIES.items():
        if any(re.search(names, name) for name in shapes):
            return family
    widths = {
        shape[1]
        for name, shape in shapes.items()
        if re.search(r"layers[._]\d+[._]attention", name) and DOWN_WEIGHT.search(name) and len(shape) == 2
    }
    return next((family for width, family in LAYER_WIDTHS.items() if width in widths), "")


def is_unet_name(name: str) -> bool:
    """Whether a tensor is for the UNet."""
    return name.startswith(UNET_PREFIXES) or OLD_UNET.match(name) is not None


def unet_tensors(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """The down-projections of the UNet."""
    return {
        name: shape
        for name, shape in shapes.items()
        if is_unet_name(name) and DOWN_WEIGHT.search(name) and len(shape) > 1
    }


def is_cross_attention(name: str) -> bool:
    """Whether a tensor projects text embeddings, whose width depends on the base model."""
    return "attn2" in name and ("to_k" in name or "to_v" in name)
