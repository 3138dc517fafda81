"""The sprites: every concept in every style, rendered once and saved in two files."""

import io
import json
import logging
import re
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from canvas.training.art_packages import (
    ART_PACKAGES,
    NAMES_PACKAGE,
    ArtPackage,
    fetch,
    read_json,
    read_members,
    version_of,
)
from canvas.training.config import GRAY, TrainingConfig

logger = logging.getLogger(__name__)
CONCEPTS_FILE = Path(__file__).with_name("concepts.txt")
THIN, MIN_CONTRAST = 0.3, 26  # share of its square that a thin sprite covers; its mean difference from GRAY
CONCEPT_LINE = re.compile(r"((?P<name>[^=:\"]+)=)?(?P<label>\s*\"[^\"]+\"|[^:]+)(:(?P<words>.*))?")


@dataclass(frozen=True)
class Concept:
    """A class of objects: its name, synonyms (the name first), and its emoji's keys."""

    name: str
    words: tuple[str, ...]
    label: str
    hexcode: str


@dataclass
class SpriteSet:
    """RGBA images of equal size, by concept and style."""

    concepts: list[Concept]
    pixels: np.ndarray  # uint8 [sprites, size, size, 4]
    pairs: list[tuple[int, int]]  # concept and style of each sprite
    versions: dict[str, str] = field(default_factory=dict)  # of the packages

    @cached_property
    def index(self) -> dict[tuple[int, int], int]:
        """Sprite index by (concept, style)."""
        return {pair: row for row, pair in enumerate(self.pairs)}

    @cached_property
    def images(self) -> list[Image.Image]:
        """The sprites cropped to their opaque area."""
        images = [Image.fromarray(pixels, "RGBA") for pixels in self.pixels]
        return [image.crop(image.getchannel("A").getbbox()) for image in images]

    @cached_property
    def styles(self) -> list[int]:
        """The styles that occur, sorted."""
        return sorted({style for _, style in self.pairs})

    def save(self, folder: Path) -> None:
        """Write `concepts.json` and `sprites.zip`, one WebP per sprite (6,500 take 40 MB)."""
        folder.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(folder / "sprites.zip", "w") as archive:
            for (concept, style), row in self.index.items():
                buffer = io.BytesIO()
                image = Image.fromarray(self.pixels[row])
                image.save(buffer, "WEBP", quality=92, alpha_quality=95)
                archive.writestr(f"{concept}-{style}.webp", buffer.getvalue())
        meta = {"concepts": [asdict(each) for each in self.concepts], "versions": self.versions}
        (folder / "concepts.json").write_text(json.dumps(meta, ensure_ascii=False, indent=1))

    @classmethod
    def load(cls, folder: Path) -> "SpriteSet":
        """Read the files of `save`."""
        meta = json.loads((folder / "concepts.json").read_text())
        concepts = [Concept(**{**fields, "words": tuple(fields["words"])}) for fields in meta["concepts"]]
        with zipfile.ZipFile(folder / "sprites.zip") as archive:
            files = {name: archive.read(name) for name in archive.namelist()}
        with ThreadPoolExecutor() as pool:
            pixels = list(pool.map(_decode, files.values()))
        names = (name.removesuffix(".webp").split("-") for name in files)
        pairs = [(int(concept), int(style)) for concept, style in names]
        return cls(concepts, np.stack(pixels), pairs, meta["versions"])


def _decode(webp: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(webp)).convert("RGBA"))


def icon_key(label: str) -> str:
    """The key of a CLDR label in the icon sets."""
    return re.sub(r"[^\w-]+", "-", re.sub(r"[“”’',:.!]", "", label.lower())).strip("-")


def read_concepts_file(path: Path) -> dict[str, tuple[str, ...]]:
    """Words of each concept by emojibase label; lines `label`, `label: a, b`, `x = label: a, b`.

    A label with a colon stands in quotation marks.
    """
    concepts = {}
    for line in path.read_text().splitlines():
        if line.startswith("#") or not (match := CONCEPT_LINE.fullmatch(line.strip())):
            continue
        label = match["label"].strip('" ')
        words = match["words"] or match["name"] or label
        concepts[label] = tuple(word.strip() for word in words.split(","))
    return concepts


def select_concepts(entries: list[dict[str, Any]], concepts_file: Path) -> list[Concept]:
    """The concepts of the file. Raises ValueError for labels that emojibase does not have."""
    selected = read_concepts_file(concepts_file)
    concepts = [
        Concept(words[0], words, entry["label"], entry["hexcode"])
        for entry in entries
        if (words := selected.get(entry["label"]))
    ]
    missing = set(selected) - {concept.label for concept in concepts}
    if missing:
        raise ValueError(f"{concepts_file}: not in emojibase: {sorted(missing)}")
    return concepts


def render_svg(body: str, width: int, height: int, size: int) -> Image.Image:
    """An icon's SVG body as an RGBA image of `size` pixels."""
    import resvg_py

    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 {width} {height}" width="{size}" height="{size}">{body}</svg>'
    )
    png = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size)
    return Image.open(io.BytesIO(bytes(png))).convert("RGBA")


def _render_icons(tarball: Path, concepts: list[Concept], size: int) -> dict[int, Image.Image]:
    icons: dict[str, Any] = read_json(tarball, "icons.json")  # type: ignore[assignment]
    sprites = {}
    for row, concept in enumerate(concepts):
        key = icon_key(concept.label)
        key = icons.get("aliases", {}).get(key, {}).get("parent", key)
        icon = icons["icons"].get(key)
        if icon:
            width = icon.get("width", icons.get("width", 16))
            height = icon.get("height", icons.get("height", width))
            sprites[row] = render_svg(icon["body"], width, height, size)
    return sprites


def _resize_webps(tarball: Path, concepts: list[Concept], size: int) -> dict[int, Image.Image]:
    by_code = {each.hexcode.lower().replace("-fe0f", ""): row for row, each in enumerate(concepts)}
    sprites = {}
    for stem, content in read_members(tarball, ".webp"):
        row = by_code.get(stem.lower().replace("-fe0f", ""))
        if row is not None:
            image = Image.open(io.BytesIO(content)).convert("RGBA")
            sprites[row] = image.resize((size, size), Image.Resampling.LANCZOS)
    return sprites


def render_package(package: ArtPackage, tarball: Path, concepts: list[Concept], size: int) -> dict[int, Image.Image]:
    """The package's sprites by concept index; concepts that it lacks are omitted."""
    render = _resize_webps if package.name.startswith("@lobehub/") else _render_icons
    return render(tarball, concepts, size)


def darken_if_invisible(sprite: Image.Image) -> np.ndarray:
    """The sprite's pixels, darkened if it is thin and nearly GRAY, of which its cells would hold nothing."""
    pixels = np.array(sprite.crop(sprite.getchannel("A").getbbox()), dtype=np.float32)
    alpha = pixels[..., 3] / 255
    contrast = (np.abs(pixels[..., :3] - GRAY).mean(-1) * alpha).sum() / alpha.sum()
    result = np.array(sprite)
    if alpha.sum() < THIN * max(alpha.shape) ** 2 and contrast < MIN_CONTRAST:
        result[..., :3] //= 2
    return result


def build_sprites(config: TrainingConfig, packages: Path, concepts_file: Path = CONCEPTS_FILE) -> SpriteSet:
    """Render the concepts of the file in the styles of the preset; 6,500 sprites take about a minute."""
    names = fetch(NAMES_PACKAGE, packages)
    entries: list[dict[str, Any]] = read_json(names, "en/data.json")  # type: ignore[assignment]
    concepts = select_concepts(entries, concepts_file)
    versions = {NAMES_PACKAGE.name: version_of(names, NAMES_PACKAGE)}
    pixels, pairs = [], []
    for style, package in enumerate(ART_PACKAGES):
        if package.style not in config.styles:
            continue
        tarball = fetch(package, packages)
        versions[package.name] = version_of(tarball, package)
        images = render_package(package, tarball, concepts, config.sprite_size)
        missing = [each.name for row, each in enumerate(concepts) if row not in images]
        logger.info("%s: %d sprites, missing: %s", package.style, len(images), missing[:20])
        for row, image in sorted(images.items()):
            if image.getchannel("A").getbbox():
                pixels.append(darken_if_invisible(image))
                pairs.append((row, style))
    return SpriteSet(concepts, np.stack(pixels), pairs, versions)
