"""Where the program runs: at home, or on a Hugging Face Space, and what that changes."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any

TRUTHY = ("1", "t", "true", "yes", "on")
# What a Space with `hf_oauth: true` is given; Gradio's sign-in needs all of them.
OAUTH = ("OAUTH_CLIENT_ID", "OAUTH_CLIENT_SECRET", "OAUTH_SCOPES", "OPENID_PROVIDER_URL")
DATA_MOUNT = "/data"  # where a Space's storage is mounted unless its owner chose another place


def space_defaults(environ: Mapping[str, str]) -> dict[str, Any]:
    """Settings that follow from where the program runs; nothing at home.

    A Space is open to strangers, listens for its proxy, and keeps its pictures on the
    attached storage, else wherever it may write.
    """
    if not environ.get("SPACE_ID"):
        return {}
    bucket = Path(environ.get("CANVAS_BUCKET") or DATA_MOUNT)
    lasting = bucket.is_dir() and is_writable(bucket)
    folder = bucket if lasting else first_writable(Path(), temp_dir())
    home_cache = Path(environ.get("HOME") or "/") / ".cache" / "magic-canvas"
    return {
        "space": environ["SPACE_ID"],
        "host": "0.0.0.0",  # noqa: S104 - the container's door, with the Space's proxy before it
        "public": True,
        "data_dir": folder,
        "cache_dir": first_writable(home_cache, folder / ".canvas"),
        "persistent": lasting,
        "zero_gpu": environ.get("SPACES_ZERO_GPU", "").lower() in TRUTHY,
        "sign_in": all(environ.get(name) for name in OAUTH),
    }


def configure_hf_home(environ: MutableMapping[str, str]) -> None:
    """Give huggingface_hub a folder where the home of a Space cannot be written."""
    if not environ.get("SPACE_ID") or environ.get("HF_HOME") or environ.get("HF_HUB_CACHE"):
        return
    usual = Path(environ.get("XDG_CACHE_HOME") or Path(environ.get("HOME") or "/") / ".cache")
    if not is_writable(usual / "huggingface"):
        environ["HF_HOME"] = str(temp_dir() / "huggingface")


def temp_dir() -> Path:
    """A folder of ours among the temporary ones."""
    return Path(tempfile.gettempdir()) / "magic-canvas"


def first_writable(*folders: Path) -> Path:
    """The first of them that can be written, else the last."""
    return next((folder for folder in folders if is_writable(folder)), folders[-1])


def is_writable(folder: Path) -> bool:
    """Whether files can be made in a folder, or it can be made itself."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)
