"""`deploy`: this program as a Hugging Face Space of yours."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from canvas.cli.console import AsJson, print_json, print_line, with_examples
from canvas.errors import CanvasError, InvalidInput
from canvas.models.hub_client import Hub

ROOT = Path(__file__).resolve().parent.parent.parent
# What a Space needs, and nothing else goes up: no data folder, no keys, no tests.
TOP_LEVEL_FILES = ("README.md", "LICENSE", "app.py", "requirements.txt")
FOLDERS = {
    "canvas": {".py"},
    "assets": {".css", ".html", ".js", ".json", ".md", ".png", ".safetensors", ".txt", ".woff2"},
}
EXCLUDE = ("canvas/training/", "assets/screenshots/")
SPACE_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
ERROR_MESSAGES = {
    401: "The Hub does not take the token. Make one that may write at "
    "https://huggingface.co/settings/tokens and set HF_TOKEN.",
    403: "The token may not write to {space_id}. Make one with the right to write there at "
    "https://huggingface.co/settings/tokens.",
    404: "{space_id} cannot be found or made with this token: is the name before the slash yours?",
    429: "The Hub limits requests from here; try again in some minutes.",
}


@dataclass(frozen=True)
class SpaceFile:
    """One file of the Space, its path with slashes, and its bytes."""

    path: str
    size: int


def collect_files(root: Path = ROOT) -> list[SpaceFile]:
    """All that a Space needs of this program, by path; links are left out."""
    found = [root / name for name in TOP_LEVEL_FILES]
    for folder, kinds in FOLDERS.items():
        found += [path for path in (root / folder).rglob("*") if path.suffix in kinds]
    files = {}
    for path in found:
        name = path.relative_to(root).as_posix()
        hidden = any(part.startswith((".", "__pycache__")) for part in name.split("/"))
        if path.is_file() and not path.is_symlink() and not hidden:
            files[name] = path.stat().st_size
    return [
        SpaceFile(name, size)
        for name, size in sorted(files.items())
        if not name.startswith(EXCLUDE)
    ]


def check_space_id(space_id: str) -> str:
    """The id as it was given; raises InvalidInput for what cannot be one."""
    if not SPACE_ID.fullmatch(space_id) or len(space_id) > 96:
        raise InvalidInput("USER/NAME", space_id, "your name on the Hub, a slash and a name")
    return space_id


def upload(
    space_id: str,
    files: list[SpaceFile],
    *,
    root: Path = ROOT,
    private: bool = False,
    hub: Hub | None = None,
) -> str:
    """Make the Space or bring it up to date; returns its address, raises CanvasError.

    Of what lies there already only older files of ours are removed.
    """
    from httpx import HTTPError
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    hub = hub or Hub()
    api = HfApi(endpoint=hub.endpoint, token=hub.token)
    try:
        address = api.create_repo(
            space_id, repo_type="space", space_sdk="gradio", private=private, exist_ok=True
        )
        api.upload_folder(
            repo_id=space_id,
            repo_type="space",
            folder_path=root,
            allow_patterns=[file.path for file in files],
            delete_patterns=[f"{folder}/*" for folder in FOLDERS],
            commit_message="Bring Magic Canvas up to date",
        )
    except HfHubHTTPError as error:
        status = error.response.status_code
        sentence = ERROR_MESSAGES.get(
            status, f"The Hub refused it with status {status}; try again."
        )
        raise CanvasError(sentence.format(space_id=space_id)) from error
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CanvasError(f"Nothing was committed to {space_id}: {why}. Try again.") from error
    return str(address)


@with_examples("python -m canvas deploy me/canvas --dry-run")
def deploy(
    space_id: Annotated[str, typer.Argument(metavar="USER/NAME", help="The Space.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List what would go up, and send nothing.")
    ] = False,
    private: Annotated[bool, typer.Option("--private", help="Only you may see it.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    json: AsJson = False,
) -> None:
    """Create or update a Hugging Face Space; shows what goes up and asks before it does."""
    pass
    from canvas.formatting import format_bytes

    check_space_id(space_id)
    files = collect_files()
    for file in files:
        if json:
            print_json(asdict(file))
        else:
            print_line(f"{format_bytes(file.size):>9}  {file.path}")
    total = format_bytes(sum(file.size for file in files))
    words = f"{len(files)} files, {total}"
    if dry_run:
        if not json:
            print_line(f"{words} would go to the Space {space_id}; nothing was sent.")
        return
    if not yes:
        typer.confirm(f"Send these {words} to the Space {space_id}?", abort=True, err=True)
    address = upload(space_id, files, private=private)
    if json:
        print_json({"space": space_id, "address": address})
    else:
        print_line(f"Sent. The Space builds itself now, in some minutes: {address}")
