"""What huggingface_hub keeps on this disk: its cache of repositories, read and tidied."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path

from canvas.models.hub_client import Hub


def free_bytes(hub: Hub) -> int:
    """Free space where downloads go."""
    folder = hub.cache
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def snapshots(hub: Hub, repo_id: str) -> list[Path]:
    """The cached commits of a repository: what `main` points to first, then the newest."""
    folder = hub.folder(repo_id)
    main = folder / "refs" / "main"
    current = main.read_text(encoding="utf-8") if main.is_file() else ""
    found = [path for path in folder.glob("snapshots/*") if path.is_dir()]
    return sorted(found, key=lambda path: (path.name != current, -path.stat().st_mtime))


def listing(hub: Hub, repo_id: str, revision: str) -> dict[str, int] | None:
    """Path to size as the Hub listed the commit; None where an older library downloaded it."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        tree = get_cached_repo_tree(repo_id, revision=revision, cache_dir=hub.cache)
    except CachedRepoTreeNotFoundError:
        return None
    return {file.path: file.size for file in tree}


def has_file(hub: Hub, repo_id: str, revision: str, path: str, blob: str, size: int) -> bool:
    """Whether a file of that size is there, for this commit or, as the same blob, for another."""
    folder = hub.folder(repo_id)
    places = (folder / "snapshots" / revision / path, folder / "blobs" / blob)
    return any(place.is_file() and place.stat().st_size == size for place in places)


def bytes_on_disk(hub: Hub, repo_ids: Collection[str]) -> int:
    """What those repositories take, each blob counted once, unfinished files included."""
    folders = [hub.folder(repo_id) for repo_id in repo_ids]
    files = {path.resolve() for folder in folders for path in folder.rglob("*") if path.is_file()}
    return sum(path.stat().st_size for path in files)


def delete(hub: Hub, repo_ids: Collection[str]) -> None:
    """Remove those repositories from the cache, all their commits."""
    from huggingface_hub import scan_cache_dir

    if hub.cache.is_dir():
        cache = scan_cache_dir(hub.cache)
        found = [
            revision.commit_hash
            for repo in cache.repos
            if repo.repo_type == "model" and repo.repo_id in repo_ids
            for revision in repo.revisions
        ]
        cache.delete_revisions(*found).execute()
    for repo_id in repo_ids:
        if hub.folder(repo_id).exists():  # a broken-off download is no repository to the library
            shutil.rmtree(hub.folder(repo_id))


def remove_partial_files(hub: Hub, repo_id: str) -> None:
    """Delete what ended processes left; the library never takes such files up again."""
    from filelock import Timeout
    from huggingface_hub.utils import WeakFileLock

    locks = hub.cache / ".locks" / hub.folder(repo_id).name
    for partial in hub.folder(repo_id).glob("blobs/*.incomplete"):
        lock = locks / f"{partial.name.partition('.')[0]}.lock"
        try:
            with WeakFileLock(lock, timeout=0.1):
                partial.unlink(missing_ok=True)
        except Timeout:
            continue  # another process is fetching that file now
