"""The drawings: every thing in every style, rendered once and kept in two files."""

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

from canvas.training.packages import (
    ART_PACKAGES,
    NAMES_PACKAGE,
    STYLES,
    ArtPackage,
    fetch,
    read_json,
    read_members,
    version_of,
)
from canvas.training.presets import Preset

logger = logging.getLogger(__name__)
# Groups and subgroups of emojibase that hold no single concrete thing.
LEFT_OUT_GROUPS = (2, 8, 9)
LEFT_OUT_SUBGROUPS = (18, 24, 25, 27, 30, 31)


@dataclass(frozen=True)
class Thing:
    """Something to draw: its name, other words for it, and its emoji's keys."""

    name: str
    words: tuple[str, ...]
    label: str
    hexcode: str
    tags: tuple[str, ...] = ()


@dataclass
class Sprites:
    """Drawings as RGBA pictures of equal size, by thing and style."""

    things: list[Thing]
    pixels: np.ndarray  # uint8 [drawings, size, size, 4]
    thing_of: np.ndarray  # int32 [drawings]
    style_of: np.ndarray  # int32 [drawings]
    versions: dict[str, str] = field(default_factory=dict)

    @cached_property
    def index(self) -> dict[tuple[int, int], int]:
        """Row of a drawing by (thing, style)."""
        pairs = zip(self.thing_of.tolist(), self.style_of.tolist(), strict=True)
        return {pair: row for row, pair in enumerate(pairs)}

    @cached_property
    def pictures(self) -> list[Image.Image]:
        """The drawings cropped to what is drawn."""
        pictures = [Image.fromarray(pixels, "RGBA") for pixels in self.pixels]
        return [picture.crop(picture.getchannel("A").getbbox()) for picture in pictures]

    def styles_of(self, thing: int) -> list[int]:
        """The styles in which the thing is drawn."""
        return [style for style in range(len(STYLES)) if (thing, style) in self.index]

    def save(self, folder: Path) -> None:
        """Write `things.json`, and `sprites.zip` with one WebP a drawing (6,500 fit in 40 MB)."""
        folder.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(folder / "sprites.zip", "w") as archive:
            for (thing, style), row in self.index.items():
                buffer = io.BytesIO()
                picture = Image.fromarray(self.pixels[row])
                picture.save(buffer, "WEBP", quality=92, alpha_quality=95)
                archive.writestr(f"{thing}-{style}.webp", buffer.getvalue())
        meta = {"things": [asdict(thing) for thing in self.things], "versions": self.versions}
        (folder / "things.json").write_text(json.dumps(meta, ensure_ascii=False, indent=1))

    @classmethod
    def load(cls, folder: Path) -> "Sprites":
        """Read what `save` wrote."""
        meta = json.loads((folder / "things.json").read_text())
        things = [
            Thing(**{k: tuple(v) if isinstance(v, list) else v for k, v in thing.items()})
            for thing in meta["things"]
        ]
        with zipfile.ZipFile(folder / "sprites.zip") as archive:
            files = {name: archive.read(name) for name in archive.namelist()}
        with ThreadPoolExecutor() as pool:
            pixels = list(pool.map(_decode, files.values()))
        pairs = [[int(part) for part in name.removesuffix(".webp").split("-")] for name in files]
        thing_of, style_of = np.array(pairs, np.int32).T
        return cls(things, np.stack(pixels), thing_of, style_of, meta["versions"])


def _decode(webp: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(webp)).convert("RGBA"))


def icon_key(label: str) -> str:
    """The key under which the icon sets file a CLDR label."""
    return re.sub(r"[^\w-]+", "-", re.sub(r"[“”’',:.!]", "", label.lower())).strip("-")


def read_things_file(path: Path) -> dict[str, tuple[str, ...]]:
    """Words of each thing by emojibase label: lines `label`, `label: a, b`, `x = label: a, b`."""
    chosen = {}
    for line in path.read_text().splitlines():
        if line.startswith("#") or not line.strip():
            continue
        left, _, words = line.partition(":")
        name, _, label = left.partition("=")
        label = (label or name).strip()
        chosen[label] = tuple(w.strip() for w in (words or name).split(","))
    return chosen


def choose_things(entries: list[dict[str, Any]], things_file: Path | None) -> list[Thing]:
    """The things of the file, or every concrete thing of emojibase without one."""
    chosen = read_things_file(things_file) if things_file else None
    things = []
    for entry in entries:
        label = entry["label"]
        if chosen is not None:
            words = chosen.get(label)
        elif entry.get("group") in (None, *LEFT_OUT_GROUPS) or (
            entry.get("subgroup") in LEFT_OUT_SUBGROUPS
        ):
            words = None
        else:
            words = (label.lower(),)
        if words:
            things.append(
                Thing(words[0], words, label, entry["hexcode"], tuple(entry.get("tags", ())))
            )
    missing = set(chosen or ()) - {thing.label for thing in things}
    if missing:
        raise ValueError(f"{things_file}: emojibase knows no {sorted(missing)}")
    return things


def render_svg(body: str, width: int, height: int, size: int) -> Image.Image:
    """Draw an icon's SVG body at `size` pixels."""
    import resvg_py

    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 {width} {height}" width="{size}" height="{size}">{body}</svg>'
    )
    png = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size)
    return Image.open(io.BytesIO(bytes(png))).convert("RGBA")


def _svg_drawings(tarball: Path, things: list[Thing], size: int) -> dict[int, Image.Image]:
    icons: dict[str, Any] = read_json(tarball, "icons.json")  # type: ignore[assignment]
    drawings = {}
    for row, thing in enumerate(things):
        key = icon_key(thing.label)
        key = icons.get("aliases", {}).get(key, {}).get("parent", key)
        icon = icons["icons"].get(key)
        if icon:
            width = icon.get("width", icons.get("width", 16))
            height = icon.get("height", icons.get("height", width))
            drawings[row] = render_svg(icon["body"], width, height, size)
    return drawings


def _webp_drawings(tarball: Path, things: list[Thing], size: int) -> dict[int, Image.Image]:
    by_code = {thing.hexcode.lower().replace("-fe0f", ""): row for row, thing in enumerate(things)}
    drawings = {}
    for stem, content in read_members(tarball, ".webp"):
        row = by_code.get(stem.lower().replace("-fe0f", ""))
        if row is not None:
            picture = Image.open(io.BytesIO(content)).convert("RGBA")
            drawings[row] = picture.resize((size, size), Image.Resampling.LANCZOS)
    return drawings


def draw_package(
    package: ArtPackage, tarball: Path, things: list[Thing], size: int
) -> dict[int, Image.Image]:
    """The package's drawings by row of `things`; what it does not hold is left out."""
    draw = _webp_drawings if package.name.startswith("@lobehub/") else _svg_drawings
    return draw(tarball, things, size)


def build_sprites(preset: Preset, packages_folder: Path, things_file: Path | None) -> Sprites:
    """Render all drawings of the preset; about a minute for 6,500 of them."""
    names = fetch(NAMES_PACKAGE, packages_folder)
    entries: list[dict[str, Any]] = read_json(names, "en/data.json")  # type: ignore[assignment]
    things = choose_things(entries, things_file)
    versions = {NAMES_PACKAGE.name: version_of(names, NAMES_PACKAGE)}
    pixels, thing_of, style_of = [], [], []
    for style, package in enumerate(ART_PACKAGES):
        if package.style not in preset.styles:
            continue
        tarball = fetch(package, packages_folder)
        versions[package.name] = version_of(tarball, package)
        drawings = draw_package(package, tarball, things, preset.sprite_size)
        logger.info(
            "%s: %d drawings, lacks %s",
            package.style,
            len(drawings),
            [things[row].name for row in range(len(things)) if row not in drawings][:20],
        )
        for row, picture in sorted(drawings.items()):
            if picture.getchannel("A").getbbox():
                pixels.append(np.asarray(picture))
                thing_of.append(row)
                style_of.append(style)
    return Sprites(
        things,
        np.stack(pixels),
        np.array(thing_of, np.int32),
        np.array(style_of, np.int32),
        versions,
    )
