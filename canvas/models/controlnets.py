"""ControlNets: the usual one of each family and kind, and those in the folder `controlnets` or on the Hub."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from canvas.catalog import ModelSpec
from canvas.errors import InvalidInput, LazyMessage, ModelCorrupted
from canvas.models import download, hub_cache
from canvas.models.capabilities import Capabilities, read_config
from canvas.models.download import DownloadPlan, DownloadProgress
from canvas.models.hub_client import Hub
from canvas.request import GenerationRequest

STANDARD_GFLOPS = 803  # of a UNet of Stable Diffusion 1.5 at 512x512, in the catalog
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
CONFIG = "config.json"
# In this order: half the bytes, and the weights are converted to the dtype of the device anyway.
WEIGHTS = ("diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.safetensors")


class Usual(NamedTuple):
    """The repository of a ControlNet, and about how many bytes are downloaded."""

    repo_id: str
    size: int


_SD15, _XL, _FLUX = 722_600_000, 2_502_000_000, 4_280_000_000
_FLUX_UNION = Usual("Shakker-Labs/FLUX.1-dev-ControlNet-Union-Pro-2.0", _FLUX)
# By family (a key of `families.BY_KEY`) and kind
USUAL: Mapping[str, Mapping[str, Usual]] = MappingProxyType(
    {
        "stable_diffusion": {
            "canny": Usual("lllyasviel/control_v11p_sd15_canny", _SD15),
            "lineart": Usual("lllyasviel/control_v11p_sd15_lineart", _SD15),
            "scribble": Usual("lllyasviel/control_v11p_sd15_scribble", _SD15),
            "soft_edge": Usual("lllyasviel/control_v11p_sd15_softedge", _SD15),
            "depth": Usual("lllyasviel/control_v11f1p_sd15_depth", _SD15),
            "pose": Usual("lllyasviel/control_v11p_sd15_openpose", _SD15),
            "tile": Usual("lllyasviel/control_v11f1e_sd15_tile", _SD15),
            "inpaint": Usual("lllyasviel/control_v11p_sd15_inpaint", _SD15),
        },
        "stable_diffusion_xl": {
            "canny": Usual("diffusers/controlnet-canny-sdxl-1.0", _XL),
            "depth": Usual("diffusers/controlnet-depth-sdxl-1.0", _XL),
            "lineart": Usual("xinsir/controlnet-scribble-sdxl-1.0", _XL),
            "scribble": Usual("xinsir/controlnet-scribble-sdxl-1.0", _XL),
            "pose": Usual("xinsir/controlnet-openpose-sdxl-1.0", _XL),
            "tile": Usual("xinsir/controlnet-tile-sdxl-1.0", _XL),
        },
        "flux": {kind: _FLUX_UNION for kind in ("canny", "lineart", "soft_edge", "depth", "pose")},
    }
)
CLASSES: Mapping[str, str] = MappingProxyType(
    {"stable_diffusion": "ControlNetModel", "stable_diffusion_xl": "ControlNetModel", "flux": "FluxControlNetModel"}
)


def family_of(spec: ModelSpec, capabilities: Capabilities | None) -> str:
    """The key of the model's family; before the download that of its type, "" if that is not known."""
    if capabilities is not None:
        return capabilities.family.key
    return "" if spec.type == "auto" else spec.type


def check_family(family: str, spec: ModelSpec) -> None:
    """Raise InvalidInput if no ControlNet fits models of that family."""
    if family and family not in CLASSES:
        text = "The model {model} takes no control images. Choose a model of Stable Diffusion 1.5, SDXL or FLUX.1."
        raise InvalidInput("control_images", family, message=LazyMessage(text, model=spec.key))


def usual_model(kind: str, family: str, spec: ModelSpec, capabilities: Capabilities | None) -> str:
    """The Hub id of the usual ControlNet; raises InvalidInput if there is none for the model."""
    if not family and capabilities is None:
        text = "Download the model {model} first: which ControlNets fit it is known only then."
        raise InvalidInput("control_images", kind, message=LazyMessage(text, model=spec.key))
    check_family(family, spec)
    usual = USUAL.get(family, {}).get(kind)
    if usual is None or not has_usual_layers(family, spec, capabilities):
        text = (
            "There is no usual ControlNet of the kind {kind} for the model {model}. Name one that fits: a folder "
            "in `controlnets` or a Hub id."
        )
        raise InvalidInput("control_images", kind, message=LazyMessage(text, kind=kind, model=spec.key))
    return usual.repo_id


def has_usual_layers(family: str, spec: ModelSpec, capabilities: Capabilities | None) -> bool:
    """Whether the denoiser is the one for which the usual ControlNets are made."""
    if family == "flux":
        return True
    # Smaller UNets of the catalog have a number of operations of their own.
    return capabilities.standard_unet if capabilities else spec.gflops_per_step in (0, STANDARD_GFLOPS)


def is_hub_id(name: str, folder: Path) -> bool:
    """Whether the name is that of a repository; a folder of that name comes first."""
    return HUB_ID.fullmatch(name) is not None and not (folder / name / CONFIG).is_file()


def find(name: str, folder: Path, *, hub: Hub | None = None) -> Path | None:
    """The folder of a ControlNet on disk, None if it can be downloaded; raises InvalidInput."""
    if is_hub_id(name, folder):
        return next((path for path in hub_cache.snapshots(hub or Hub(), name) if weights_of(path)), None)
    path = folder / name
    if not re.fullmatch(r"[\w-][\w. /-]*", name) or ".." in name or not weights_of(path):
        known = ", ".join(list_names(folder)) or "none"
        message = (
            f"ControlNet {name} not found. Add a folder {name} with {CONFIG} and {WEIGHTS[1]} to the folder "
            f"{folder.name} (it has: {known}), or name a Hub id."
        )
        raise InvalidInput("control_images", name, message=message)
    return path


def missing(request: GenerationRequest, folder: Path, *, hub: Hub | None = None) -> list[str]:
    """The Hub ids of ControlNets that a resolved request has to download."""
    names = dict.fromkeys(item.model for item in request.control_images if item.model)
    return [name for name in names if is_hub_id(name, folder) and find(name, folder, hub=hub) is None]


def weights_of(folder: Path) -> Path | None:
    """The file of weights in a complete folder."""
    if not (folder / CONFIG).is_file():
        return None
    return next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)


def list_names(folder: Path) -> list[str]:
    """The names of the ControlNets in the folder."""
    return sorted(path.parent.relative_to(folder).as_posix() for path in folder.glob(f"**/{CONFIG}"))


def class_of(folder: Path) -> str:
    """The diffusers class in the configuration, "" if it cannot be read."""
    return str(read_config(folder).get("_class_name", ""))


def plan_download(name: str, *, hub: Hub | None = None, cancelled: threading.Event | None = None) -> DownloadPlan:
    """Plan the download of the configuration and the smallest weights; raises ModelUnavailable."""

    def select(files: Iterable[str]) -> list[str]:
        known = set(files)
        weights = next((each for each in WEIGHTS if each in known), None)
        if weights is None or CONFIG not in known:
            raise ModelCorrupted(f"{name} has no ControlNet in safetensors. Name another repository.")
        return [CONFIG, weights]

    return download.plan_files(hub or Hub(), name, select, cancelled)


def fetch(
    name: str, on_progress: Callable[[DownloadProgress], None], cancelled: threading.Event, *, hub: Hub | None = None
) -> Path:
    """Download a ControlNet; raises ModelUnavailable."""
    hub = hub or Hub()
    return download.download_files(hub, plan_download(name, hub=hub, cancelled=cancelled), on_progress, cancelled)


def download_size(name: str) -> int | None:
    """About how many bytes a ControlNet of USUAL has; None for others."""
    known = (usual for kinds in USUAL.values() for usual in kinds.values())
    return next((usual.size for usual in known if usual.repo_id == name), None)
