"""The npm packages with artwork, fetched with the `npm` client or taken from a folder."""

import json
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from shutil import which


@dataclass(frozen=True)
class ArtPackage:
    """An npm package; `style` is its style name in captions."""

    style: str
    name: str
    licence: str
    author: str

    @property
    def tarball_prefix(self) -> str:
        """The name of the tarball that `npm pack` writes, without the version."""
        return self.name.replace("@", "").replace("/", "-")


ART_PACKAGES = (
    ArtPackage("cartoon", "@iconify-json/noto", "Apache-2.0", "Noto Emoji, Google Inc"),
    ArtPackage("glossy", "@iconify-json/fluent-emoji", "MIT", "Fluent Emoji, Microsoft"),
    ArtPackage("flat", "@iconify-json/fluent-emoji-flat", "MIT", "Fluent Emoji, Microsoft"),
    ArtPackage("sticker", "@iconify-json/twemoji", "CC-BY-4.0", "Twemoji, Twitter"),
    ArtPackage("3d", "@lobehub/fluent-emoji-3d", "MIT", "Fluent Emoji 3D, Microsoft, LobeHub"),
)
NAMES_PACKAGE = ArtPackage("", "emojibase-data", "MIT", "Emojibase, Miles Johnson")
STYLES = tuple(package.style for package in ART_PACKAGES)


def find_tarball(package: ArtPackage, folder: Path) -> Path | None:
    """The newest tarball of the package in the folder (`noto` must not match `noto-v1`)."""
    found = sorted(
        path
        for path in folder.glob(f"{package.tarball_prefix}-*.tgz")
        if path.name.removeprefix(f"{package.tarball_prefix}-")[0].isdigit()
    )
    return found[-1] if found else None


def fetch(package: ArtPackage, folder: Path) -> Path:
    """The package's tarball in the folder, downloaded with `npm pack` if missing.

    Raises FileNotFoundError without `npm`, CalledProcessError if the download fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tarball = find_tarball(package, folder)
    if tarball is None:
        npm = which("npm")
        if npm is None:
            raise FileNotFoundError(
                f"{package.name} is missing in {folder} and npm is not installed. Run "
                f"`npm pack {package.name}` on another machine and copy the .tgz file there."
            )
        subprocess.run([npm, "pack", "--silent", package.name], cwd=folder, check=True)  # noqa: S603 - a constant
        tarball = find_tarball(package, folder)
    if tarball is None:
        raise FileNotFoundError(f"npm wrote no {package.tarball_prefix}-*.tgz to {folder}")
    return tarball


def version_of(tarball: Path, package: ArtPackage) -> str:
    """The version in the tarball's name."""
    return tarball.name.removeprefix(f"{package.tarball_prefix}-").removesuffix(".tgz")


def read_member(tarball: Path, name: str) -> bytes:
    """A file of the package by its path from the package root. Raises FileNotFoundError."""
    with tarfile.open(tarball) as archive:
        try:
            stream = archive.extractfile(f"package/{name}")
        except KeyError:
            stream = None
        if stream is None:
            raise FileNotFoundError(f"{tarball} has no file {name}")
        return stream.read()


def read_json(tarball: Path, name: str) -> object:
    """A JSON file of the package."""
    return json.loads(read_member(tarball, name))


def read_members(tarball: Path, suffix: str) -> Iterator[tuple[str, bytes]]:
    """Stem and content of every file with the suffix."""
    with tarfile.open(tarball) as archive:
        for member in archive:
            stream = archive.extractfile(member) if member.name.endswith(suffix) else None
            if stream is not None:
                yield Path(member.name).stem, stream.read()
