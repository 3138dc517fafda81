"""The art packages: fetched with the `npm` client, or taken from a folder of tarballs."""

import json
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from shutil import which


@dataclass(frozen=True)
class ArtPackage:
    """One package of drawings: how it is called in captions, and whose it is."""

    style: str
    name: str
    licence: str
    author: str

    @property
    def tarball_prefix(self) -> str:
        """What `npm pack` calls the package's tarball, without the version."""
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
    """The package's tarball in the folder, packed there by `npm` when it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    tarball = find_tarball(package, folder)
    if tarball is None:
        npm = which("npm")
        if npm is None:
            raise FileNotFoundError(
                f"{package.name}: no tarball in {folder} and no `npm` to fetch it with; "
                f"run `npm pack {package.name}` elsewhere and put the .tgz there"
            )
        subprocess.run([npm, "pack", "--silent", package.name], cwd=folder, check=True)  # noqa: S603 - our own constant
        tarball = find_tarball(package, folder)
    if tarball is None:
        raise FileNotFoundError(f"npm packed no {package.tarball_prefix}-*.tgz into {folder}")
    return tarball


def version_of(tarball: Path, package: ArtPackage) -> str:
    """The version that the tarball's name tells."""
    return tarball.name.removeprefix(f"{package.tarball_prefix}-").removesuffix(".tgz")


def read_json(tarball: Path, member: str) -> object:
    """A JSON file of the package, named from its root."""
    with tarfile.open(tarball) as archive:
        stream = archive.extractfile(f"package/{member}")
        if stream is None:
            raise FileNotFoundError(f"{member} in {tarball}")
        return json.load(stream)


def read_members(tarball: Path, suffix: str) -> Iterator[tuple[str, bytes]]:
    """Stem and bytes of every file with the suffix."""
    with tarfile.open(tarball) as archive:
        for member in archive:
            stream = archive.extractfile(member) if member.name.endswith(suffix) else None
            if stream is not None:
                yield Path(member.name).stem, stream.read()
