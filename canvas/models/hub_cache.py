"""The cache of huggingface_hub on disk: finds, measures and deletes repositories."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path

from canvas.models.hub_client import Hub

PARTIAL_SUFFIX = ".incomplete"


def free_bytes(hub: Hub) -> int:
    """Free space on the disk of the cache, which need not exist yet."""
    folder = hub.cache
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def snapshots(hub: Hub, repo_id: str) -> list[Path]:
    """The cached commits of a repository: the one of `main` first, then the newest."""
    folder = hub.repo_folder(repo_id)
    main = folder / "refs" / "main"
    current = main.read_text(encoding="utf-8") if main.is_file() else ""
    found = [path for path in folder.glob("snapshots/*") if path.is_dir()]
    return sorted(found, key=lambda path: (path.name != current, -path.stat().st_mtime))


def cached_tree(hub: Hub, repo_id: str, revision: str) -> dict[str, int] | None:
    """File sizes by path as the Hub listed them; None if an older library downloaded the commit."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        tree = get_cached_repo_tree(repo_id, revision=revision, cache_dir=hub.cache)
    except CachedRepoTreeNotFoundError:
        return None
    return {file.path: file.size for file in tree}


def has_file(hub: Hub, repo_id: str, revision: str, path: str, etag: str, size: int) -> bool:
    """Whether the commit, or another one by the same blob, has that file in full size."""
    folder = hub.repo_folder(repo_id)
    candidates = (folder / "snapshots" / revision / path, folder / "blobs" / etag)
    return any(file.is_file() and file.stat().st_size == size for file in candidates)


def bytes_on_disk(hub: Hub, repo_ids: Collection[str]) -> int:
    """Bytes of the repositories on disk; counts each blob once, and partial files."""
    folders = [hub.repo_folder(repo_id) for repo_id in repo_ids]
    files = {path.resolve() for folder in folders for path in folder.rglob("*") if path.is_file()}
    return sum(path.stat().st_size for path in files)


def delete(hub: Hub, repo_ids: Collection[str]) -> None:
    """Delete all commits of the repositories from the cache."""
    from huggingface_hub import scan_cache_dir

    if hub.cache.is_dir():
        cache = scan_cache_dir(hub.cache)
        revisions = [
            revision.commit_hash
            for repo in cache.repos
            if repo.repo_type == "model" and repo.repo_id in repo_ids
            for revision in repo.revisions
        ]
        cache.delete_revisions(*revisions).execute()
    for repo_id in repo_ids:
        if hub.repo_folder(repo_id).exists():  # scan_cache_dir skips incomplete downloads
            shutil.rmtree(hub.repo_folder(repo_id))


def partial_bytes(hub: Hub, repo_id: str, etag: str, size: int) -> int:
    """Bytes of a file of `size` bytes that an earlier download left and the next one continues."""
    path = hub.repo_folder(repo_id) / "blobs" / f"{etag}{PARTIAL_SUFFIX}"
    found = path.stat().st_size if path.is_file() else 0
    return found if found <= size else 0


def remove_partial_files(hub: Hub, repo_id: str, keep: Collection[str] = ()) -> None:
    """Delete the partial files of processes that have ended, except those of the etags in `keep`.

    Files of huggingface_hub itself (`ETAG.RANDOM.incomplete`) are never continued.
    """
    from filelock import Timeout
    from huggingface_hub.utils import WeakFileLock

    locks = hub.cache / ".locks" / hub.repo_folder(repo_id).name
    for partial in hub.repo_folder(repo_id).glob(f"blobs/*{PARTIAL_SUFFIX}"):
        if partial.name.removesuffix(PARTIAL_SUFFIX) in keep:
            continue
        lock = locks / f"{partial.name.partition('.')[0]}.lock"
        try:
            with WeakFileLock(lock, timeout=0.1):
                partial.unlink(missing_ok=True)
        except Timeout:
            continue  # another process is downloading that file
