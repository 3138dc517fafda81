"""Where a picture is made: the words of a request's `where`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

HERE = "here"
PROVIDER = "huggingface"
REMOTE = "remote"
PLACES: Mapping[str, str] = MappingProxyType(
    {
        HERE: "This computer",
        PROVIDER: "Hugging Face Inference Providers",
        REMOTE: "Another Magic Canvas",
    }
)
