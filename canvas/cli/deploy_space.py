"""`deploy`: creates or updates a Hugging Face Space from this checkout."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from canvas.cli.console import AsJson, print_line, print_result, with_examples
from canvas.errors import CanvasError, InvalidInput
from canvas.formatting import format_bytes

ROOT = Path(__file__).resolve().parent.parent.parent
# What a Space needs; nothing else is uploaded: no data folder, no keys, no tests.
TOP_LEVEL_FILES = ("README.md", "LICENSE", "app.py", "requirements.txt")
FOLDERS = {
    "canvas": {".py"},
    "assets": {
        *(".css", ".gz", ".html", ".js", ".json", ".md", ".png", ".safetensors", ".txt", ".webp", ".woff2", ".yaml")
    },
}
EXCLUDE = ("canvas/training/", "assets/screenshots/")
SPACE_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
MAX_SPACE_ID_LENGTH = 96
ERROR_MESSAGES = {
    401: "Invalid Hugging Face token. Create one with write access at "
    "https://huggingface.co/settings/tokens and set HF_TOKEN.",
    403: "The token has no write access to {space_id}. Create one that has at "
    "https://huggingface.co/settings/tokens and set HF_TOKEN.",
    404: "{space_id} cannot be found or created with this token. Check that the part before the "
    "slash is your user name or organization.",
    429: "The Hub's rate limit is reached. Try again in a few minutes.",
}


@dataclass(frozen=True)
class SpaceFile:
    """A file to upload: its path in the Space and its size in bytes."""

    path: str
    size: int


@with_examples("python -m canvas deploy USER/NAME --dry-run", "python -m canvas deploy USER/NAME --private")
def deploy(
    space_id: Annotated[str, typer.Argument(metavar="USER/NAME", help="Id of the Space.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the files without uploading them.")] = False,
    private: Annotated[bool, typer.Option("--private", help="Create a private Space.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
    json: AsJson = False,
) -> None:
    """Create or update a Hugging Face Space, after listing the files and asking to confirm."""
    check_space_id(space_id)
    if not (ROOT / "app.py").is_file():
        raise CanvasError("`deploy` needs a clone of the repository; run it there.")
    files = collect_files()
    for file in files:
        print_result(f"{format_bytes(file.size):>9}  {file.path}", asdict(file), as_json=json)
    summary = f"{len(files)} files, {format_bytes(sum(file.size for file in files))}"
    if dry_run:
        if not json:
            print_line(f"Dry run: {summary} for the Space {space_id}, nothing uploaded.")
        return
    if not yes:
        typer.confirm(f"Upload {summary} to the Space {space_id}?", abort=True, err=True)
    url = upload(space_id, files, private=private)
    text = f"Uploaded. The Space is now building, which takes some minutes: {url}"
    print_result(text, {"space": space_id, "url": url, "address": url}, as_json=json)


def check_space_id(space_id: str) -> None:
    """Raise InvalidInput unless it has the form USER/NAME."""
    if not SPACE_ID.fullmatch(space_id) or len(space_id) > MAX_SPACE_ID_LENGTH:
        raise InvalidInput("USER/NAME", space_id, "your Hugging Face user name, a slash and a name")


def collect_files(root: Path = ROOT) -> list[SpaceFile]:
    """The files to upload, sorted by path; hidden files and symbolic links are left out."""
    paths = [root / name for name in TOP_LEVEL_FILES]
    for folder, suffixes in FOLDERS.items():
        paths += [path for path in (root / folder).rglob("*") if path.suffix in suffixes]
    files = []
    for path in paths:
        name = path.relative_to(root).as_posix()
        hidden = any(part.startswith((".", "__pycache__")) for part in name.split("/"))
        if path.is_file() and not path.is_symlink() and not hidden and not name.startswith(EXCLUDE):
            files.append(SpaceFile(name, path.stat().st_size))
    return sorted(files, key=lambda file: file.path)


def upload(space_id: str, files: list[SpaceFile], *, private: bool = False) -> str:
    """Create or update the Space in one commit and return its URL; raises CanvasError.

    Files of an earlier version below `FOLDERS` are deleted; other files of the Space stay.
    """
    from httpx2 import HTTPError  # the HTTP client of huggingface_hub
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi()
    try:
        url = api.create_repo(space_id, repo_type="space", space_sdk="gradio", private=private, exist_ok=True)
        api.upload_folder(
            repo_id=space_id,
            repo_type="space",
            folder_path=ROOT,
            allow_patterns=[file.path for file in files],
            delete_patterns=[f"{folder}/*" for folder in FOLDERS],
            commit_message="Update Magic Canvas",
        )
    except HfHubHTTPError as error:
        status = error.response.status_code
        message = ERROR_MESSAGES.get(status, f"The Hub answered with status {status}. Try again.")
        raise CanvasError(message.format(space_id=space_id)) from error
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CanvasError(f"The upload to {space_id} failed: {reason}. Try again.") from error
    return str(url)
