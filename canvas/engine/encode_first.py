"""Encodes prompts before the denoiser is loaded, so that only one of both is in memory."""

from __future__ import annotations

import hashlib
import inspect
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from canvas.engine import system_info
from canvas.files import atomic_write

ATTRIBUTE = "_encode_first"
MAX_IN_MEMORY = 8  # an entry of FLUX.2-klein takes 8 MB
MAX_ON_DISK = 64


class EncodeFirst:
    """The text encoder and the denoiser of a pipeline, of which one at a time is in memory.

    `load_encoder` and `load_denoiser` load them. `cache` keeps prompt embeddings on disk under a
    hash of the prompt, if it is given: a prompt that was used before needs no encoder.
    """

    def __init__(
        self, load_encoder: Callable[[], Any], load_denoiser: Callable[[], Any], *, cache: Path | None = None
    ) -> None:
        self._load_encoder = load_encoder
        self._load_denoiser = load_denoiser
        self._cache = cache
        self._embeddings: OrderedDict[str, list[Any]] = OrderedDict()
        self._denoiser: Any = None
        self._pipelines: list[Any] = []

    def prepare(self, pipeline: Any, prompts: tuple[str, str], *, guided: bool) -> None:
        """Encode the prompts and give the pipeline its denoiser."""
        missing = [text for text in prompts[: 1 + guided] if self._find(text) is None]
        if missing:
            if not getattr(self._denoiser, "peft_config", None):  # freeing it would lose the LoRAs
                self.free_denoiser()
            self._encode(pipeline, missing)
        self.load_denoiser(pipeline)

    def load_denoiser(self, pipeline: Any) -> None:
        """Give the pipeline its denoiser, loaded if needed."""
        if self._denoiser is None:
            self._denoiser = self._load_denoiser()
        if pipeline.transformer is None:
            pipeline.transformer = self._denoiser
            self._pipelines.append(pipeline)

    def free_denoiser(self) -> None:
        """Free the denoiser of all pipelines that share it."""
        for pipeline in self._pipelines:
            pipeline.transformer = None
        self._pipelines.clear()
        self._denoiser = None
        system_info.release_memory()

    def arguments(self, pipeline: Any, prompts: tuple[str, str], *, guided: bool) -> dict[str, Any]:
        """The arguments of the pipeline for the prompt and the negative prompt."""
        self.prepare(pipeline, prompts, guided=guided)
        names = ("prompt_embeds", "negative_prompt_embeds")[: 1 + guided]
        found = {name: self._find(text) for name, text in zip(names, prompts, strict=False)}
        as_list = "list" in str(inspect.signature(pipeline.encode_prompt).parameters["prompt_embeds"].annotation)
        return {name: tensors if as_list else (tensors or [None])[0] for name, tensors in found.items()}

    def _encode(self, pipeline: Any, texts: list[str]) -> None:
        import torch

        known = inspect.signature(pipeline.encode_prompt).parameters
        options = {"do_classifier_free_guidance": False} if "do_classifier_free_guidance" in known else {}
        pipeline.text_encoder = self._load_encoder()
        try:
            with torch.inference_mode():
                for text in texts:
                    embeds = pipeline.encode_prompt(text, device=pipeline.device, **options)[0]
                    self._keep(text, embeds if isinstance(embeds, list) else [embeds])
        finally:
            pipeline.text_encoder = None
            system_info.release_memory()

    def _find(self, text: str) -> list[Any] | None:
        if text not in self._embeddings and (path := self._path(text)) and path.is_file():
            from safetensors import SafetensorError
            from safetensors.torch import load_file

            try:
                tensors = load_file(path)
            except (OSError, SafetensorError):  # damaged: encode it again
                return None
            path.touch()
            self._embeddings[text] = [tensors[name] for name in sorted(tensors)]
        return self._embeddings.get(text)

    def _keep(self, text: str, tensors: list[Any]) -> None:
        from safetensors.torch import save

        kept = [tensor.clone() for tensor in tensors]
        self._embeddings[text] = kept
        while len(self._embeddings) > MAX_IN_MEMORY:
            self._embeddings.popitem(last=False)
        if (path := self._path(text)) is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as file:
                file.write(save({str(index): tensor.contiguous() for index, tensor in enumerate(kept)}))
            stored = sorted(path.parent.glob("*.safetensors"), key=lambda each: each.stat().st_mtime)
            for old in stored[:-MAX_ON_DISK]:
                old.unlink(missing_ok=True)
        except OSError:
            return  # a full or read-only disk: the prompt is encoded again next time

    def _path(self, text: str) -> Path | None:
        if self._cache is None:
            return None
        return self._cache / f"{hashlib.sha256(text.encode()).hexdigest()}.safetensors"


def attach(pipeline: Any, encode_first: EncodeFirst) -> None:
    """Let the pipeline, and those made from it, load their parts in turn."""
    vars(pipeline.vae)[ATTRIBUTE] = encode_first  # the component that all of them share


def attached(pipeline: Any) -> EncodeFirst | None:
    """What `attach` gave to the pipeline, or None."""
    vae = getattr(pipeline, "vae", None)
    return vars(vae).get(ATTRIBUTE) if vae is not None else None
