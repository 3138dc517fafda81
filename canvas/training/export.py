"""Exports the trained model as a diffusers pipeline in half precision, and its model card."""

import json
import logging
import math
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from canvas.training.art_packages import ART_PACKAGES, NAMES_PACKAGE, STYLES
from canvas.training.assets import SpriteSet
from canvas.training.backgrounds import COLOURS, PLACES
from canvas.training.captions import PLACE_PHRASES
from canvas.training.config import WORD_TOKENS
from canvas.training.denoiser import build_scheduler
from canvas.training.scene_generator import STYLE_FALLBACK

logger = logging.getLogger(__name__)
CARD_TEMPLATE = Path(__file__).with_name("card.md")
COMPONENTS = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")


def export_model(work: Path, target: Path) -> None:
    """Write the pipeline's folders; other files in the target are kept."""
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderTiny.from_pretrained(work / "vae-finetuned"),
        text_encoder=CLIPTextModel.from_pretrained(work / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(work / "tokenizer"),
        unet=UNet2DConditionModel.from_pretrained(work / "unet"),
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    for component in COMPONENTS:
        shutil.rmtree(target / component, ignore_errors=True)
    pipeline.to(dtype=torch.float16).save_pretrained(target, safe_serialization=True)
    for path in target.glob("*/config.json"):  # remove the paths of this machine
        config = json.loads(path.read_text())
        config.pop("_name_or_path", None)
        path.write_text(json.dumps(config, indent=2) + "\n")
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    logger.info("%s: %.1f MB", target, size / 1e6)


def load_metrics(work: Path) -> dict[str, float]:
    """The contents of `metrics.json`; empty before the evaluation."""
    path = work / "metrics.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _percent(metrics: dict[str, float], key: str) -> str:
    value = metrics.get(key, math.nan)
    return "–" if math.isnan(value) else f"{100 * value:.1f} %"


def metrics_table(metrics: dict[str, float]) -> str:
    """The evaluation as a Markdown table."""
    rows = (
        ("concept, top 1", "concept_top1", "reference_top1"),
        ("concept, top 5", "concept_top5", "reference_top5"),
        ("style", "style", "reference_style"),
        ("place", "place", "reference_place"),
        ("both concepts of a held-out pair", "pairs_both", "reference_both"),
        ("near-synonyms (words held out of all scene captions), top 1", "near_synonyms_top1", ""),
        ("near-synonyms, top 5", "near_synonyms_top5", ""),
    )
    lines = ["| accuracy | generated images | composited scenes |", "|---|---|---|"]
    lines += [
        f"| {name} | {_percent(metrics, key)} | {_percent(metrics, reference)} |" for name, key, reference in rows
    ]
    return "\n".join(lines)


def preset_comparison(metrics: dict[str, float]) -> str:
    """Balanced compared with Quality, in a sentence."""
    if "balanced_ssim" not in metrics:
        return "Balanced compared with Quality: not measured."
    return (
        f"Balanced compared with Quality (`python -m canvas.training preset-regression`, "
        f"{metrics['preset_prompts']} prompts with {metrics['preset_seeds']} seeds each): "
        f"mean SSIM {metrics['balanced_ssim']:.3f}, top-1 accuracy "
        f"{_percent(metrics, 'balanced_top1')} and {_percent(metrics, 'quality_top1')}."
    )


def art_table(sprites: SpriteSet) -> str:
    """Packages, versions, authors and licences of the artwork, as a Markdown table."""
    styles = {STYLES[style] for style in sprites.styles}
    lines = ["| style | package | version | author | licence |", "|---|---|---|---|---|"]
    lines += [
        f"| {package.style or 'names'} | `{package.name}` | "
        f"{sprites.versions.get(package.name, '')} | {package.author} | {package.licence} |"
        for package in (*ART_PACKAGES, NAMES_PACKAGE)
        if package.style in styles or not package.style
    ]
    return "\n".join(lines)


def _list_styles(sprites: SpriteSet) -> str:
    styles = sorted(STYLES[style] for style in sprites.styles)
    fallbacks = ", ".join(
        f"`{style}` is treated as `{STYLE_FALLBACK[style]}`" for style in STYLE_FALLBACK if style not in styles
    )
    return ", ".join(f"`{style}`" for style in styles) + (f" ({fallbacks})" if fallbacks else "")


def write_card(work: Path, target: Path, sprites: SpriteSet) -> None:
    """Write the model card, `README.md`, from `card.md`, the metrics and `training.md`."""
    metrics = load_metrics(work)
    unet, text_encoder, vae = (
        json.loads((target / component / "config.json").read_text()) for component in ("unet", "text_encoder", "vae")
    )
    downsampling = 2 ** (len(vae["block_out_channels"]) - 1)
    num_tokens = text_encoder["max_position_embeddings"]
    size = sum(path.stat().st_size for path in target.rglob("*.safetensors"))
    training = work / "training.md"
    values = {
        "megabytes": f"{size / 1e6:.0f}",
        "num_tokens": str(num_tokens),
        "word_tokens": str(WORD_TOKENS),
        "grid_tokens": str(num_tokens - WORD_TOKENS),
        "size": str(unet["sample_size"] * downsampling),
        "downsampling": str(downsampling),
        "num_concepts": str(len(sprites.concepts)),
        "concepts": ", ".join(sorted(concept.name for concept in sprites.concepts)),
        "num_sprites": str(len(sprites.pixels)),
        "styles": _list_styles(sprites),
        "places": ", ".join(PLACE_PHRASES[place][0] for place in PLACES),
        "colours": ", ".join(COLOURS),
        "art": art_table(sprites),
        "metrics": metrics_table(metrics),
        "preset_comparison": preset_comparison(metrics),
        "diversity": f"{metrics.get('diversity_percent', 0):.1f}",
        "num_inference_steps": str(metrics.get("num_inference_steps", 12)),
        "guidance_scale": str(metrics.get("guidance_scale", 2.0)),
        "num_singles": str(metrics.get("num_singles", 0)),
        "num_pairs": str(metrics.get("num_pairs", 0)),
        "num_near_synonyms": str(metrics.get("num_near_synonyms", 0)),
        "load_seconds": f"{metrics.get('load_seconds', 0):.1f}",
        "seconds_per_image": f"{metrics.get('seconds_per_image', 0):.2f}",
        "training": training.read_text().strip() if training.exists() else "Not recorded.",
    }
    card = CARD_TEMPLATE.read_text()
    for key, value in values.items():
        card = card.replace("{{" + key + "}}", value)
    (target / "README.md").write_text(card)
