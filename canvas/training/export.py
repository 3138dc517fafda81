"""The finished model as `StableDiffusionPipeline` loads it, in half precision, with its card."""

import json
import logging
import math
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from canvas.training.backgrounds import COLOURS, PLACES
from canvas.training.captions import PLACE_PHRASES
from canvas.training.denoiser import build_scheduler
from canvas.training.grid import WORD_TOKENS
from canvas.training.packages import ART_PACKAGES, NAMES_PACKAGE, STYLES
from canvas.training.scenes import ALIKE_STYLES
from canvas.training.sprites import Sprites

logger = logging.getLogger(__name__)
CARD = Path(__file__).with_name("card.md")


def export_model(work: Path, target: Path) -> None:
    """Write the pipeline's folders; files that others put there stay."""
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderTiny.from_pretrained(work / "vae-finished"),
        text_encoder=CLIPTextModel.from_pretrained(work / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(work / "tokenizer"),
        unet=UNet2DConditionModel.from_pretrained(work / "unet"),
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    for part in ("vae", "text_encoder", "tokenizer", "unet", "scheduler"):
        shutil.rmtree(target / part, ignore_errors=True)
    pipeline.to(dtype=torch.float16).save_pretrained(target, safe_serialization=True)
    for config in target.glob("*/config.json"):  # where it was trained is nobody's matter
        content = json.loads(config.read_text())
        content.pop("_name_or_path", None)
        config.write_text(json.dumps(content, indent=2) + "\n")
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    logger.info("%s: %.1f MB", target, size / 1e6)


def _percent(figures: dict[str, float], key: str) -> str:
    value = figures.get(key, math.nan)
    return "–" if math.isnan(value) else f"{100 * value:.1f} %"


def figures_table(figures: dict[str, float]) -> str:
    """The evaluation as a Markdown table, beside the judge's verdict on real scenes."""
    rows = (
        ("thing right, top 1", "thing_top1", "real_top1"),
        ("thing right, top 5", "thing_top5", "real_top5"),
        ("style right", "style", "real_style"),
        ("place right", "place", "real_place"),
        ("both of two things (pairs never seen together)", "pairs_both", "real_both"),
        ("near-synonyms (words outside the scenes' captions), top 1", "near_synonyms", ""),
        ("near-synonyms, top 5", "near_synonyms_top5", ""),
    )
    lines = ["| measure | generated | composed (the ceiling) |", "|---|---|---|"]
    lines += [
        f"| {name} | {_percent(figures, key)} | {_percent(figures, real)} |"
        for name, key, real in rows
    ]
    return "\n".join(lines)


def modes_line(figures: dict[str, float]) -> str:
    """Balanced beside Quality in a sentence."""
    if "balanced_ssim" not in figures:
        return "Balanced beside Quality: not measured."
    return (
        f"Balanced beside Quality (`python -m canvas.training modes`, "
        f"{figures['modes_prompts']} prompts from {figures['modes_seeds']} seeds each): mean SSIM "
        f"{figures['balanced_ssim']:.3f}, thing right {_percent(figures, 'balanced_top1')} "
        f"against {_percent(figures, 'quality_top1')}."
    )


def art_table(sprites: Sprites) -> str:
    """Packages, versions, authors and licences of what it was trained on."""
    used = {STYLES[style] for style in sprites.style_of.tolist()}
    lines = ["| style | package | version | by | licence |", "|---|---|---|---|---|"]
    lines += [
        f"| {package.style or 'names'} | `{package.name}` | "
        f"{sprites.versions.get(package.name, '')} | {package.author} | {package.licence} |"
        for package in (*ART_PACKAGES, NAMES_PACKAGE)
        if package.style in used or not package.style
    ]
    return "\n".join(lines)


def write_card(work: Path, target: Path, sprites: Sprites) -> None:
    """`README.md` of the model: data, licences, use, limits, and the measured figures."""
    figures_path = work / "figures.json"
    figures = json.loads(figures_path.read_text()) if figures_path.exists() else {}
    unet = json.loads((target / "unet" / "config.json").read_text())
    text = json.loads((target / "text_encoder" / "config.json").read_text())
    vae = json.loads((target / "vae" / "config.json").read_text())
    down = 2 ** (len(vae["block_out_channels"]) - 1)
    tokens = text["max_position_embeddings"]
    size = sum(path.stat().st_size for path in target.rglob("*.safetensors"))
    styles = sorted({STYLES[style] for style in sprites.style_of.tolist()})
    missing = [word for word in ALIKE_STYLES if word not in styles]
    alike = ", ".join(f"`{word}` is taken for `{ALIKE_STYLES[word]}`" for word in missing)
    values = {
        "megabytes": f"{size / 1e6:.0f}",
        "tokens": str(tokens),
        "layer_tokens": str(tokens - WORD_TOKENS),
        "side": str(unet["sample_size"] * down),
        "down": str(down),
        "thing_count": str(len(sprites.things)),
        "things": ", ".join(sorted(thing.name for thing in sprites.things)),
        "drawings": str(len(sprites.pixels)),
        "styles": ", ".join(f"`{style}`" for style in styles) + (f" ({alike})" if alike else ""),
        "places": ", ".join(PLACE_PHRASES[place][0] for place in PLACES),
        "colours": ", ".join(COLOURS),
        "art": art_table(sprites),
        "figures": figures_table(figures),
        "modes": modes_line(figures),
        "variety": f"{figures.get('variety_percent', 0):.1f}",
        "steps": str(figures.get("steps", 12)),
        "guidance": str(figures.get("guidance_scale", 2.0)),
        "prompts": str(figures.get("prompts", 0)),
        "pair_prompts": str(figures.get("pair_prompts", 0)),
        "near_prompts": str(figures.get("near_prompts", 0)),
        "load": f"{figures.get('load_seconds', 0):.1f}",
        "seconds": f"{figures.get('seconds_a_picture', 0):.2f}",
        "training": (work / "training.md").read_text().strip()
        if (work / "training.md").exists()
        else "Not recorded.",
    }
    text = CARD.read_text()
    for key, value in values.items():
        text = text.replace("{{" + key + "}}", value)
    (target / "README.md").write_text(text)
