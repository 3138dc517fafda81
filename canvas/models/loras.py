"""LoRA files, in the LoRA folder by name or on the Hub as `owner/name` or `owner/name:file`, and their families."""

from __future__ import annotations

import json
import re
import threading
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from canvas.errors import InvalidInput, LazyMessage, NotFound
from canvas.models import download, hub_cache
from canvas.models.download import DownloadPlan, DownloadProgress
from canvas.models.families import FAMILIES
from canvas.models.hub_client import Hub

PICKLE_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
HUB_NAME = re.compile(r"(?P<repo_id>[\w-][\w.-]*/[\w-][\w.-]*)(?::(?P<file>[^:<>\\]+\.safetensors))?")
DEFAULT_FILE_NAME = "pytorch_lora_weights.safetensors"  # of diffusers' trainers
MAX_TRIGGER_WORDS = 8
NOT_SAFETENSORS = "The LoRA {name} is not a .safetensors file; other formats can run code and are not loaded."
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


@dataclass(frozen=True)
class Lora:
    """The header of a LoRA file; its weights are not loaded."""

    name: str
    path: Path
    base_model: str  # "" if unknown
    trigger_words: tuple[str, ...] = ()
    shapes: Shapes = field(default_factory=dict, repr=False)
    family: str = ""  # a key of LABELS, "" if unknown


def list_loras(folder: Path) -> dict[str, Lora]:
    """The valid LoRA files of a folder by name."""
    found: dict[str, Lora] = {}
    for path in sorted(folder.glob("**/*.safetensors")):
        try:
            lora = read_lora(path)
        except InvalidInput:
            continue  # get_lora reports the reason
        name = lora.name if lora.name not in found else path.relative_to(folder).with_suffix("").as_posix()
        found[name] = replace(lora, name=name)
    return found


def find_local(name: str, folder: Path) -> Path | None:
    """The file with that path or name in the folder or a sub folder, with or without its suffix.

    Case and the composition of accents are ignored, but an exact match is preferred.
    """
    wanted = _normalize(name)
    matches = []  # the best one is the least
    for path in folder.glob("**/*"):
        if path.suffix.lower() not in (".safetensors", *PICKLE_SUFFIXES) or not path.is_file():
            continue
        relative = path.relative_to(folder)
        names = [relative.as_posix(), relative.with_suffix("").as_posix(), path.name, path.stem]
        if name in names:
            matches.append((-1, path))
        matches += [(rank, path) for rank, known in enumerate(names) if _normalize(known) == wanted]
    return min(matches)[1] if matches else None


def _normalize(name: str) -> str:
    # macOS decomposes accents in file names.
    return unicodedata.normalize("NFC", name.replace("\\", "/").strip()).casefold()


def get_lora(name: str, folder: Path) -> Lora:
    """The LoRA of that name; raises NotFound, or InvalidInput for a bad file."""
    if path := find_local(name, folder):
        return read_lora(path)
    text = "LoRA {name} not found. Add {name}.safetensors to the folder {folder} (it has: {known})."
    known = ", ".join(list_loras(folder)) or LazyMessage("none")
    raise NotFound(LazyMessage(text, name=name, folder=folder.name, known=known))


def read_lora(path: Path) -> Lora:
    """Read the header of a LoRA file; raises InvalidInput for pickles and other weights."""
    from safetensors import SafetensorError, safe_open

    if path.suffix.lower() != ".safetensors":
        raise InvalidInput("loras", path.name, message=LazyMessage(NOT_SAFETENSORS, name=path.name))
    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    except (SafetensorError, OSError, ValueError) as error:
        message = LazyMessage("{name} is damaged or not a safetensors file.", name=path.name)
        raise InvalidInput("loras", path.name, message=message) from error
    if not is_lora(shapes):
        text = "{name} is not a LoRA but {kind}."
        message = LazyMessage(text, name=path.name, kind=LazyMessage(kind_of(shapes)))
        raise InvalidInput("loras", path.name, message=message)
    family = lora_family(shapes)
    architecture = metadata.get("modelspec.architecture") or metadata.get("ss_base_model_version") or ""
    base_model = LABELS.get(family) or architecture[:60]
    return Lora(path.stem, path, base_model, _trigger_words(metadata), shapes, family)


def is_hub_name(name: str, folder: Path) -> bool:
    """Whether the name is that of a LoRA on the Hub; a file of that name in the folder comes first."""
    return HUB_NAME.fullmatch(name) is not None and find_local(name, folder) is None


def find(name: str, *, hub: Hub | None = None) -> Path | None:
    """The cached file of a LoRA on the Hub; makes no request."""
    repo_id, file = _parse_hub_name(name)
    for folder in hub_cache.snapshots(hub or Hub(), repo_id):
        present = [path.relative_to(folder).as_posix() for path in folder.rglob("*.safetensors")]
        if file in present:
            return folder / file
        if file is None and present:
            return folder / _select_file(name, present)
    return None


def plan_download(name: str, *, hub: Hub | None = None, cancelled: threading.Event | None = None) -> DownloadPlan:
    """Plan the download of its one file; raises InvalidInput if the name must include the file."""
    repo_id, file = _parse_hub_name(name)

    def select(names: Iterable[str]) -> list[str]:
        return [file or _select_file(name, [each for each in names if each.endswith(".safetensors")])]

    return download.plan_files(hub or Hub(), repo_id, select, cancelled)


def fetch(
    name: str, on_progress: Callable[[DownloadProgress], None], cancelled: threading.Event, *, hub: Hub | None = None
) -> Path:
    """Download a LoRA of the Hub; raises ModelUnavailable or InvalidInput."""
    hub = hub or Hub()
    plan = plan_download(name, hub=hub, cancelled=cancelled)
    return download.download_files(hub, plan, on_progress, cancelled) / plan.files[0].path


def _trigger_words(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """The author's trigger phrase, or else the most frequent training tags."""
    if phrase := metadata.get("modelspec.trigger_phrase", "").strip():
        return tuple(word.strip() for word in phrase.split(",") if word.strip())[:MAX_TRIGGER_WORDS]
    counts: Counter[str] = Counter()
    try:
        for tags in json.loads(metadata.get("ss_tag_frequency", "{}")).values():
            for tag, count in tags.items():
                counts[tag.strip()] += int(count)
    except (ValueError, AttributeError, TypeError):
        return ()
    frequent = [tag for tag, count in counts.items() if tag and count >= max(counts.values()) / 2]
    return tuple(sorted(frequent, key=lambda tag: (-counts[tag], tag))[:MAX_TRIGGER_WORDS])


def _parse_hub_name(name: str) -> tuple[str, str | None]:
    match = HUB_NAME.fullmatch(name)
    if match is None:
        raise InvalidInput("loras", name, "owner/name or owner/name:file.safetensors")
    return match["repo_id"], match["file"]


def _select_file(name: str, files: list[str]) -> str:
    if not files:
        raise InvalidInput("loras", name, message=LazyMessage(NOT_SAFETENSORS, name=name))
    if DEFAULT_FILE_NAME in files:
        return DEFAULT_FILE_NAME
    if len(files) > 1:
        text = "The LoRA {name} has several files. Append one of them after a colon: {files}."
        raise InvalidInput("loras", name, message=LazyMessage(text, name=name, files=", ".join(sorted(files)[:8])))
    return files[0]


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
