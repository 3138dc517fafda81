"""Exports the trained model as a diffusers pipeline in half precision, and its model card."""

import json
import logging
import math
import re
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, PreTrainedTokenizerFast

from canvas.training.art_packages import ART_PACKAGES, NAMES_PACKAGE, STYLES
from canvas.training.assets import SpriteSet
from canvas.training.backgrounds import COLOURS, PLACES
from canvas.training.captions import PLACE_PHRASES
from canvas.training.config import NUM_INFERENCE_STEPS
from canvas.training.denoiser import build_scheduler
from canvas.training.text_encoder import WORD_TOKENS, compress_weights

logger = logging.getLogger(__name__)
CARD_TEMPLATE = Path(__file__).with_name("card.md")
COUNTS = (
    "num_one",
    "num_pair",
    "num_trio",
    "num_colours",
    "num_fidelity",
    "num_synonyms",
)  # of prompts, in the metrics
COMPONENTS = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")


def export_model(work: Path, target: Path) -> None:
    """Write the pipeline's folders; other files in the target are kept."""
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderTiny.from_pretrained(work / "vae"),
        text_encoder=CLIPTextModel.from_pretrained(work / "text_encoder"),
        tokenizer=PreTrainedTokenizerFast.from_pretrained(work / "tokenizer"),
        unet=UNet2DConditionModel.from_pretrained(work / "unet"),
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    for component in COMPONENTS:
        shutil.rmtree(target / component, ignore_errors=True)
    pipeline.to(dtype=torch.float16).save_pretrained(target, safe_serialization=True)
    compress_weights(target / "text_encoder")
    for path in target.glob("*/*config.json"):  # remove what is only of this machine
        config = json.loads(path.read_text())
        for key in ("_name_or_path", "is_local", "local_files_only"):
            config.pop(key, None)
        path.write_text(json.dumps(config, indent=2) + "\n")
    for path in (target / "model_index.json", target / "tokenizer" / "tokenizer_config.json"):
        # The name that transformers 4 has as well
        path.write_text(path.read_text().replace("TokenizersBackend", "PreTrainedTokenizerFast"))
    tokenizer = target / "tokenizer" / "tokenizer.json"
    text = json.dumps(json.loads(tokenizer.read_text()), ensure_ascii=False, separators=(",", ":"))
    tokenizer.write_text(text + "\n")
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    logger.info("%s: %.1f MB", target, size / 1e6)


def _percent(metrics: dict[str, float], key: str) -> str:
    value = metrics.get(key, math.nan)
    return "–" if math.isnan(value) else f"{100 * value:.1f} %"


def metrics_table(metrics: dict[str, float]) -> str:
    """The evaluation as two Markdown tables."""
    rows = (
        ("thing, top 1", "one_top1"),
        ("thing, top 5", "one_top5"),
        ("style", "one_style"),
        ("place", "one_place"),
        ("both things of a held-out pair", "pair_all"),
        ("all of three things", "trio_all"),
        ("colour of the thing", "colour"),
        ("synonyms, top 1", "synonyms_top1"),
    )
    lines = ["| accuracy | generated images | composed scenes |", "|---|---|---|"]
    lines += [f"| {name} | {_percent(metrics, key)} | {_percent(metrics, f'reference_{key}')} |" for name, key in rows]
    lines += ["", "| on covered pixels | PSNR, median | worst | SSIM, median |", "|---|---|---|---|"]
    told = "generated, with the light and the background of the composed scene"
    for name, prefix in (("autoencoder", "autoencoder"), ("generated", "generated"), (told, "told")):
        psnr, worst, ssim = (metrics.get(f"{prefix}_{key}", math.nan) for key in ("psnr", "worst_psnr", "ssim"))
        lines.append(f"| {name} | {psnr:.1f} dB | {worst:.1f} dB | {ssim:.3f} |")
    return "\n".join(lines)


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


def write_card(work: Path, target: Path, sprites: SpriteSet) -> None:
    """Write the model card, `README.md`, from `card.md`, the metrics and `training.md`."""
    path = work / "metrics.json"
    metrics = json.loads(path.read_text()) if path.exists() else {}
    text_encoder = json.loads((target / "text_encoder" / "config.json").read_text())
    num_tokens = text_encoder["max_position_embeddings"]
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    training = work / "training.md"
    values = {
        "megabytes": f"{size / 1e6:.0f}",
        "num_tokens": str(num_tokens),
        "word_tokens": str(WORD_TOKENS),
        "cell_tokens": str(num_tokens - WORD_TOKENS),
        "num_concepts": str(len(sprites.concepts)),
        "num_sprites": str(len(sprites.pixels)),
        "styles": ", ".join(f"`{STYLES[style]}`" for style in sprites.styles),
        "places": ", ".join(PLACE_PHRASES[place][0] for place in PLACES),
        "colours": ", ".join(COLOURS),
        "art": art_table(sprites),
        "metrics": metrics_table(metrics),
        "diversity": f"{metrics.get('diversity_percent', 0):.1f}",
        "num_inference_steps": str(NUM_INFERENCE_STEPS),
        **{name: str(metrics.get(name, 0)) for name in COUNTS},
        "load_seconds": f"{metrics.get('load_seconds', 0):.1f}",
        "seconds_per_image": f"{metrics.get('seconds_per_image', 0):.2f}",
        "training": training.read_text().strip() if training.exists() else "Not recorded.",
    }
    card = re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], CARD_TEMPLATE.read_text())
    (target / "README.md").write_text(card)
