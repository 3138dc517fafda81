"""IP-Adapters: the usual one of each family and kind, and those in the folder `ip_adapters` or on the Hub."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from canvas.catalog import ModelSpec
from canvas.errors import InvalidInput, LazyMessage
from canvas.models import addons, hub_cache
from canvas.models.addons import Addon
from canvas.models.capabilities import Capabilities
from canvas.models.controlnets import has_usual_layers
from canvas.models.hub_client import Hub
from canvas.request import GenerationRequest

HUB_FILE = re.compile(r"(?P<repo_id>[\w-][\w.-]*/[\w-][\w.-]*):(?P<file>[^:<>\\]+\.safetensors)")
REPO_ID = "h94/IP-Adapter"
ENCODER_FOLDER = "models/image_encoder"
# CLIP ViT-H, which all adapters of USUAL were trained with
ENCODER = Addon(REPO_ID, (f"{ENCODER_FOLDER}/config.json", f"{ENCODER_FOLDER}/model.safetensors"), 2_528_000_000)
# Families whose images are references by themselves, without an adapter
NATIVE = ("flux2_klein",)


class Usual(NamedTuple):
    """A file of REPO_ID, and about how many bytes it has."""

    file: str
    size: int


USUAL: Mapping[str, Mapping[str, Usual]] = MappingProxyType(
    {
        "stable_diffusion": {
            "subject": Usual("models/ip-adapter-plus_sd15.safetensors", 98_200_000),
            "style": Usual("models/ip-adapter_sd15.safetensors", 44_600_000),
            "face": Usual("models/ip-adapter-plus-face_sd15.safetensors", 98_200_000),
        },
        "stable_diffusion_xl": {
            "subject": Usual("sdxl_models/ip-adapter-plus_sdxl_vit-h.safetensors", 847_500_000),
            "style": Usual("sdxl_models/ip-adapter_sdxl_vit-h.safetensors", 698_400_000),
            "face": Usual("sdxl_models/ip-adapter-plus-face_sdxl_vit-h.safetensors", 847_500_000),
        },
    }
)


def usual_adapter(kind: str, family: str, spec: ModelSpec, capabilities: Capabilities | None) -> str:
    """`repository:file` of the usual adapter, "" if the model needs none; raises InvalidInput."""
    if family in NATIVE or (not family and capabilities is None):
        return ""
    if family not in USUAL:
        text = "The model {model} takes no reference images. Choose Stable Diffusion 1.5, SDXL or FLUX.2-klein."
        raise InvalidInput("reference_images", kind, message=LazyMessage(text, model=spec.key))
    if not has_usual_layers(family, spec, capabilities):
        text = "The model {model} has layers of its own, for which there is no usual IP-Adapter. Choose another model."
        raise InvalidInput("reference_images", kind, message=LazyMessage(text, model=spec.key))
    return f"{REPO_ID}:{USUAL[family][kind].file}"


def find(name: str, folder: Path, *, hub: Hub | None = None) -> Path | None:
    """The file of an adapter on disk, None if it can be downloaded; raises InvalidInput."""
    if match := HUB_FILE.fullmatch(name):
        paths = (snapshot / match["file"] for snapshot in hub_cache.snapshots(hub or Hub(), match["repo_id"]))
        return next((path for path in paths if path.is_file()), None)
    path = folder / name
    if re.fullmatch(r"[\w-][\w. /-]*\.safetensors", name) and ".." not in name and path.is_file():
        return path
    known = ", ".join(list_names(folder)) or "none"
    message = (
        f"IP-Adapter {name} not found in the folder {folder.name} (it has: {known}). Name a file, or owner/name:file."
    )
    raise InvalidInput("reference_images", name, message=message)


def list_names(folder: Path) -> list[str]:
    """The names of the adapters in the folder."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.glob("**/*.safetensors"))


def find_encoder(hub: Hub | None = None) -> Path | None:
    """The folder of the image encoder on disk."""
    snapshot = addons.find_files(ENCODER, hub=hub)
    return snapshot / ENCODER_FOLDER if snapshot else None


def missing(request: GenerationRequest, folder: Path, *, hub: Hub | None = None) -> list[Addon]:
    """The files that a resolved request has to download."""
    names = dict.fromkeys(item.model for item in request.reference_images if item.model)
    found = [
        Addon(match["repo_id"], (match["file"],), 0)
        for name in names
        if find(name, folder, hub=hub) is None and (match := HUB_FILE.fullmatch(name))
    ]
    return [*found, ENCODER] if names and find_encoder(hub) is None else found


def download_size(name: str, folder: Path, *, hub: Hub | None = None) -> int:
    """About how many bytes of a usual adapter and its encoder have to be downloaded."""
    sizes = {f"{REPO_ID}:{usual.file}": usual.size for kinds in USUAL.values() for usual in kinds.values()}
    size = sizes.get(name, 0) if find(name, folder, hub=hub) is None else 0
    return size + (0 if find_encoder(hub) else ENCODER.size)
