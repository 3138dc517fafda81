"""Finds text-to-image models on the Hub and on this computer, and says which ones run here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any

from canvas import validation
from canvas.catalog import is_local_source, parse_model, split_source
from canvas.errors import InvalidInput, LazyMessage, ModelCorrupted, ModelUnsupported
from canvas.models import download, pipeline_files, single_file
from canvas.models.capabilities import read_capabilities
from canvas.models.families import BY_KEY, UNSUPPORTED
from canvas.models.hub_client import Hub, call

SORTS = {
    "most downloads": "downloads",
    "most likes": "likes",
    "trending": "trending_score",
    "recently updated": "last_modified",
}
MAX_RESULTS = 12
MODEL_URL = re.compile(
    r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)/?(?:(?:tree|blob|resolve)/.*)?"
)
REPO_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(?::\S+)?")
# The folders of a pipeline; others hold ONNX or OpenVINO copies.
COMPONENT = re.compile(r"unet|transformer|vae|(?:text_encoder|tokenizer)(?:_\d)?|scheduler|feature_extractor")
# Licences that name conditions of use, for which people are asked before the download.
CONDITIONAL_LICENSES = ("other", "cc-by-nc")
ADDON_TAGS: Mapping[str, LazyMessage] = {
    "lora": LazyMessage("This is a LoRA: add it to a prompt under LoRA on Create."),
    "textual_inversion": LazyMessage("This is a textual inversion: put its file into the folder embeddings."),
    "controlnet": LazyMessage("This is a ControlNet, which draws no images by itself."),
}


@dataclass(frozen=True)
class FoundModel:
    """A model that can be added, or not: `unsupported` says why.

    `source` is the `name` of its entry. `size`: bytes of the download, None if unknown. `terms`: the
    address of a licence with conditions.
    """

    source: str
    family: str = ""
    likes: int = 0
    downloads: int = 0
    license: str = ""
    terms: str = ""
    gated: bool = False
    size: int | None = None
    unsupported: LazyMessage | None = None

    @property
    def is_local(self) -> bool:
        return is_local_source(self.source)

    @property
    def title(self) -> str:
        """The name without its owner or folder."""
        return Path(self.source.rpartition(":")[2]).name


def search(
    text: str, *, family: str = "", sort: str = "most downloads", open_only: bool = False, hub: Hub | None = None
) -> list[FoundModel]:
    """The models that a text finds: those of the Hub by words, or the one with that Hub id or path.

    `family` is a key of FAMILIES or "". Raises InvalidInput or ModelUnavailable.
    """
    text = validation.text("search", text)
    hub = hub or Hub()
    if match := MODEL_URL.fullmatch(text):
        text = match[1]
    if text.startswith(("~", "/", "./", "../", ".\\", "\\")) or re.match(r"[A-Za-z]:[\\/]", text):
        return [_inspect_local(text)]
    if REPO_ID.fullmatch(text):
        if ":" in text:
            return [_inspect_gguf(text, hub)]
        return _ask_hub(hub, ids=[text])
    validation.choice("sort", sort, SORTS)
    if family:
        validation.choice("family", family, BY_KEY)
    filters = ["diffusers", *([f"diffusers:{BY_KEY[family].text_to_image}"] if family else [])]
    return _ask_hub(hub, search=text, filter=filters, sort=SORTS[sort], open_only=open_only)


def _ask_hub(hub: Hub, **task: Any) -> list[FoundModel]:
    defaults = {"search": "", "filter": [], "sort": "downloads", "open_only": False, "ids": [], "limit": MAX_RESULTS}
    repo_id = next(iter(task.get("ids", ())), "")
    found = call(hub, {"action": "search", "repo_id": repo_id, **defaults, **task})["models"]
    return [_from_hub(model) for model in found]


def _from_hub(model: Mapping[str, Any]) -> FoundModel:
    repo_id, family, unsupported = model["id"], "", None
    try:
        family = read_capabilities({"_class_name": model["class_name"]}, {}, repo_id).family.label
    except ModelUnsupported:
        unsupported = _reason(model)
    license_name, terms = _license(repo_id, model["license"])
    return FoundModel(
        source=repo_id,
        family=family,
        likes=model["likes"],
        downloads=model["downloads"],
        license=license_name,
        terms=terms,
        gated=model["gated"],
        size=None if unsupported else _download_size(model["files"]),
        unsupported=unsupported,
    )


def _reason(model: Mapping[str, Any]) -> LazyMessage:
    """Why a repository without a known pipeline cannot be used."""
    for tag, reason in ADDON_TAGS.items():
        if tag in model["tags"]:
            return reason
    if class_name := model["class_name"]:
        unknown = LazyMessage("This program does not run {pipeline}.", pipeline=class_name)
        return UNSUPPORTED.get(class_name, unknown)
    gguf = sorted(path for path in model["files"] or () if path.endswith(".gguf"))
    if gguf:
        return LazyMessage(
            "The repository has GGUF files: enter one of them, such as {source}.", source=f"{model['id']}:{gguf[0]}"
        )
    return LazyMessage("There is no model_index.json, so this is no diffusers pipeline.")


def _license(repo_id: str, card: Mapping[str, str]) -> tuple[str, str]:
    """The name of a licence, and its address if it has conditions."""
    name = card["license"]
    if not name.startswith(CONDITIONAL_LICENSES):
        return name, ""
    link = card["license_link"]
    page = f"https://huggingface.co/{repo_id}"
    terms = link if link.startswith("https://") else f"{page}/blob/main/{link}" if link else page
    return (card["license_name"] if name == "other" and card["license_name"] else name), terms


def _download_size(files: Mapping[str, int] | None) -> int | None:
    """Bytes of the files that the program would download; None if that is unknown."""
    if files is None:
        return None
    components = {path.partition("/")[0] for path in files if "/" in path}
    index = {name: ["", name] for name in components if COMPONENT.fullmatch(name)}
    try:
        selected = pipeline_files.select_files(files, index, half_precision=True).files
    except ModelCorrupted:
        return None
    return sum(files.get(path, 0) for path in selected)


def _inspect_local(text: str) -> FoundModel:
    spec = parse_model("model", {"name": str(Path(text).expanduser().absolute())})
    if spec.components:  # a GGUF file, whose other parts are on the Hub
        _, source = spec.components[0]
        file = Path(source)
        if not file.is_file():
            raise InvalidInput("file", file.name, message=LazyMessage("There is no file {name}.", name=file.name))
        return FoundModel(source, family=spec.base, size=file.stat().st_size)
    download.plan_download(spec)  # raises what is wrong with it
    path = Path(spec.name)
    family = single_file.read_local(path, spec.name).family.label
    return FoundModel(spec.name, family=family, size=download.model_bytes_on_disk(spec))


def _inspect_gguf(source: str, hub: Hub) -> FoundModel:
    _, path = split_source(source)
    if not path.endswith(".gguf"):
        message = LazyMessage("Only GGUF files can be named in a repository. Enter the id of the whole repository.")
        raise InvalidInput("name", source, message=message)
    spec = parse_model("model", {"name": source})
    plan = download.plan_download(spec, hub=hub)
    return FoundModel(source, family=spec.base, size=plan.total_bytes)


def unique_key(title: str, taken: Iterable[str]) -> str:
    """A model key made from a title, which no other model has."""
    stem = re.sub(r"\.(safetensors|gguf)$", "", title)
    base = re.sub(r"[^\w.-]+", "-", stem.lower()).strip("-.")[:56] or "model"
    taken = set(taken)
    numbered = (f"{base}-{number}" for number in count(2))
    return next(key for key in chain([base], numbered) if key not in taken)
