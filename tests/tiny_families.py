"""Pipelines of many families with random weights, of a few hundred kilobytes, laid out as on the Hub."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.tiny_pipeline import NOISE, UNET, VAE, WORDS, make_tiny_pipeline, make_tokenizer, text_config
from tests.tiny_xl import make_tiny_xl

HIDDEN = 16  # width of the text encoders
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tiny(family: str, folder: Path) -> Path:
    """Save the pipeline of that name as a diffusers folder; its native size is 64 x 64."""
    import torch

    torch.manual_seed(0)
    BUILDERS[family](folder)
    return folder


def _vae(channels: int = 16, **options: Any) -> Any:
    from diffusers import AutoencoderKL

    scaling = {"scaling_factor": 0.3611, "shift_factor": 0.1159, "use_quant_conv": False, "use_post_quant_conv": False}
    return AutoencoderKL(**{**VAE, "latent_channels": channels, **scaling, **options})


def _flow(**options: Any) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**{"shift": 3.0, **options})


def _save(folder: Path, class_name: str, **components: Any) -> None:
    import diffusers

    pipeline = getattr(diffusers, class_name)(**components)
    pipeline.save_pretrained(folder, safe_serialization=True)


def _save_tokenizer(folder: Path, class_name: str, special: dict[str, str], **config: Any) -> Any:
    """A tokenizer of bytes and of WORDS, under the class name of the real one."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import AutoTokenizer

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate([*dict.fromkeys(special.values()), *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(dict.fromkeys(special.values())))
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {name: token for name, token in special.items() if name.endswith("_token")}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": class_name, **names, **config}))
    return AutoTokenizer.from_pretrained(folder)


def _qwen_tokenizer(folder: Path) -> Any:
    special = {"pad_token": "<|endoftext|>", "eos_token": "<|im_end|>", "start": "<|im_start|>"}
    config = {"model_max_length": 131072, "chat_template": CHAT_TEMPLATE}
    return _save_tokenizer(folder, "PreTrainedTokenizerFast", special, **config)


def _gemma_tokenizer(folder: Path) -> Any:
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
    return _save_tokenizer(folder, "PreTrainedTokenizerFast", special, model_max_length=8192, padding_side="right")


def make_spiece(folder: Path) -> Any:
    """A T5 tokenizer of the old layout: a `spiece.model` without a `tokenizer.json`."""
    import io

    import sentencepiece
    from transformers import T5Tokenizer

    folder.mkdir(parents=True, exist_ok=True)
    model = io.BytesIO()
    sentences = [" ".join(WORDS[start:] + WORDS[:start]) for start in range(len(WORDS))]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences * 4),
        model_writer=model,
        vocab_size=80,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    (folder / "spiece.model").write_bytes(model.getvalue())
    config = {"tokenizer_class": "T5Tokenizer", "model_max_length": 300, "extra_ids": 0}
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, **special}))
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    return T5Tokenizer.from_pretrained(folder)


def _t5(vocab_size: int) -> Any:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=vocab_size,
        d_model=HIDDEN,
        d_kv=8,
        d_ff=32,
        num_layers=1,
        num_heads=2,
        feed_forward_proj="gated-gelu",
    )
    return T5EncoderModel(config)


def _qwen3(class_name: str, vocab_size: int, layers: int) -> Any:
    import transformers

    config = transformers.Qwen3Config(
        hidden_size=HIDDEN,
        intermediate_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        vocab_size=vocab_size,
        max_position_embeddings=1024,
    )
    return getattr(transformers, class_name)(config)


def _gemma(vocab_size: int) -> Any:
    from transformers import Gemma2Config, Gemma2Model

    return Gemma2Model(
        Gemma2Config(
            head_dim=8,
            hidden_size=HIDDEN,
            intermediate_size=16,
            num_attention_heads=2,
            num_key_value_heads=2,
            num_hidden_layers=1,
            vocab_size=vocab_size,
            max_position_embeddings=1024,
        )
    )


def _change(folder: Path, component: str, **values: Any) -> None:
    """Change values of a configuration file."""
    name = "scheduler_config.json" if component == "scheduler" else "config.json"
    path = folder / component / name if component else folder / "model_index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}, indent=2))


def make_sd21(folder: Path) -> None:
    """Stable Diffusion 2.1: wider text embeddings, linear projections, v prediction."""
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel

    tokenizer = make_tokenizer(folder / "tokenizer")
    _save(
        folder,
        "StableDiffusionPipeline",
        vae=AutoencoderKL(**VAE),
        text_encoder=CLIPTextModel(text_config(len(tokenizer), hidden_act="gelu")),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(
            **UNET,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=32,
            attention_head_dim=(2, 4),
            use_linear_projection=True,
        ),
        scheduler=DDIMScheduler(**NOISE, prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def make_sdxs(folder: Path) -> None:
    """SDXS: one step, with an AutoencoderTiny."""
    from diffusers import AutoencoderTiny

    make_tiny_pipeline(folder)
    vae = AutoencoderTiny(
        encoder_block_out_channels=(8,) * 4,
        decoder_block_out_channels=(8,) * 4,
        num_encoder_blocks=(1, 1, 1, 1),
        num_decoder_blocks=(1, 1, 1, 1),
    )
    vae.save_pretrained(folder / "vae")
    index = json.loads((folder / "model_index.json").read_text())
    _change(folder, "", vae=["diffusers", "AutoencoderTiny"], _name_or_path=index.get("_name_or_path", ""))


def make_lcm(folder: Path) -> None:
    from diffusers import AutoencoderKL, LCMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel

    tokenizer = make_tokenizer(folder / "tokenizer")
    _save(
        folder,
        "LatentConsistencyModelPipeline",
        vae=AutoencoderKL(**VAE),
        text_encoder=CLIPTextModel(text_config(len(tokenizer))),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(
            **UNET,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=32,
            attention_head_dim=4,
            time_cond_proj_dim=32,
        ),
        scheduler=LCMScheduler(**NOISE, original_inference_steps=50),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def make_sd3(folder: Path) -> None:
    from diffusers import SD3Transformer2DModel
    from transformers import CLIPTextModelWithProjection

    tokenizers = [make_tokenizer(folder / name) for name in ("tokenizer", "tokenizer_2")]
    clip = text_config(len(tokenizers[0]), projection_dim=32, hidden_act="gelu")
    t5 = _gemma_tokenizer(folder / "tokenizer_3")
    from transformers import T5Config, T5EncoderModel

    _save(
        folder,
        "StableDiffusion3Pipeline",
        transformer=SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=16,
            out_channels=16,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=4,
            caption_projection_dim=32,
            joint_attention_dim=64,
            pooled_projection_dim=64,
            pos_embed_max_size=16,
        ),
        scheduler=_flow(),
        vae=_vae(scaling_factor=1.5305, shift_factor=0.0609),
        text_encoder=CLIPTextModelWithProjection(clip),
        tokenizer=tokenizers[0],
        text_encoder_2=CLIPTextModelWithProjection(clip),
        tokenizer_2=tokenizers[1],
        text_encoder_3=T5EncoderModel(
            T5Config(vocab_size=len(t5), d_model=64, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
        ),
        tokenizer_3=t5,
    )


def make_flux(folder: Path, *, guidance_embeds: bool = True) -> None:
    from diffusers import FluxTransformer2DModel
    from transformers import CLIPTextModel

    clip = make_tokenizer(folder / "tokenizer")
    t5 = _gemma_tokenizer(folder / "tokenizer_2")
    _save(
        folder,
        "FluxPipeline",
        transformer=FluxTransformer2DModel(
            patch_size=1,
            in_channels=64,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=HIDDEN,
            pooled_projection_dim=32,
            axes_dims_rope=(4, 4, 8),
            guidance_embeds=guidance_embeds,
        ),
        scheduler=_flow(use_dynamic_shifting=guidance_embeds),
        vae=_vae(),
        text_encoder=CLIPTextModel(text_config(len(clip))),
        tokenizer=clip,
        text_encoder_2=_t5(len(t5)),
        tokenizer_2=t5,
    )


def make_klein(folder: Path) -> None:
    from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel

    tokenizer = _qwen_tokenizer(folder / "tokenizer")
    _save(
        folder,
        "Flux2KleinPipeline",
        transformer=Flux2Transformer2DModel(
            patch_size=1,
            in_channels=128,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=3 * HIDDEN,
            timestep_guidance_channels=32,
            axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=False,
        ),
        scheduler=_flow(use_dynamic_shifting=True),
        vae=AutoencoderKLFlux2(**{**VAE, "latent_channels": 32}),
        text_encoder=_qwen3("Qwen3ForCausalLM", len(tokenizer), 28),
        tokenizer=tokenizer,
        is_distilled=True,
    )


def make_z_image(folder: Path) -> None:
    import torch
    from diffusers import ZImageTransformer2DModel

    tokenizer = _qwen_tokenizer(folder / "tokenizer")
    transformer = ZImageTransformer2DModel(
        all_patch_size=(2,),
        all_f_patch_size=(1,),
        in_channels=16,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        qk_norm=True,
        cap_feat_dim=HIDDEN,
        axes_dims=[8, 4, 4],
        axes_lens=[1024, 64, 64],
    )
    with torch.no_grad():  # torch.empty leaves anything in them
        transformer.x_pad_token.fill_(1.0)
        transformer.cap_pad_token.fill_(1.0)
    _save(
        folder,
        "ZImagePipeline",
        transformer=transformer,
        scheduler=_flow(),
        vae=_vae(),
        text_encoder=_qwen3("Qwen3Model", len(tokenizer), 2),
        tokenizer=tokenizer,
    )


def make_qwen_image(folder: Path) -> None:
    from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    tokenizer = _qwen_tokenizer(folder / "tokenizer")
    config = Qwen2_5_VLConfig(
        text_config={
            "hidden_size": HIDDEN,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "vocab_size": len(tokenizer),
            "rope_parameters": {"mrope_section": [1, 1, 2], "rope_type": "default", "rope_theta": 1e6},
            "pad_token_id": None,
            "bos_token_id": None,
            "eos_token_id": None,
        },
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": HIDDEN,
        },
    )
    _save(
        folder,
        "QwenImagePipeline",
        transformer=QwenImageTransformer2DModel(
            patch_size=2,
            in_channels=64,
            out_channels=16,
            num_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=HIDDEN,
            guidance_embeds=False,
            axes_dims_rope=(8, 4, 4),
        ),
        scheduler=_flow(use_dynamic_shifting=True),
        vae=AutoencoderKLQwenImage(
            base_dim=8,
            z_dim=16,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[False, True, True],
            latents_mean=[0.1] * 16,
            latents_std=[2.0] * 16,
        ),
        text_encoder=Qwen2_5_VLForConditionalGeneration(config),
        tokenizer=tokenizer,
    )


def _sana_parts(folder: Path, **options: Any) -> dict[str, Any]:
    from diffusers import AutoencoderDC, SanaTransformer2DModel

    tokenizer = _gemma_tokenizer(folder / "tokenizer")
    blocks = ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3
    scales = ((), (), (), (5,), (5,), (5,))
    return {
        "transformer": SanaTransformer2DModel(
            patch_size=1,
            in_channels=32,
            out_channels=32,
            num_layers=1,
            num_attention_heads=2,
            attention_head_dim=8,
            num_cross_attention_heads=2,
            cross_attention_head_dim=8,
            cross_attention_dim=16,
            caption_channels=HIDDEN,
            sample_size=2,
            **options,
        ),
        "vae": AutoencoderDC(
            latent_channels=32,
            attention_head_dim=2,
            encoder_block_types=blocks,
            decoder_block_types=blocks,
            encoder_block_out_channels=(8, 8, 8, 8, 32, 32),
            decoder_block_out_channels=(8, 8, 8, 8, 32, 32),
            encoder_qkv_multiscales=scales,
            decoder_qkv_multiscales=scales,
            encoder_layers_per_block=(1,) * 6,
            decoder_layers_per_block=(1,) * 6,
            downsample_block_type="conv",
            upsample_block_type="interpolate",
            decoder_norm_types="rms_norm",
            decoder_act_fns="silu",
            encoder_out_shortcut=True,
            scaling_factor=0.41407,
        ),
        "text_encoder": _gemma(len(tokenizer)),
        "tokenizer": tokenizer,
    }


def make_sana(folder: Path) -> None:
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, algorithm_type="dpmsolver++"
    )
    _save(folder, "SanaPipeline", scheduler=scheduler, **_sana_parts(folder))


def make_sana_sprint(folder: Path) -> None:
    from diffusers import SCMScheduler

    options = {"guidance_embeds": True, "guidance_embeds_scale": 0.1, "qk_norm": "rms_norm_across_heads"}
    _save(folder, "SanaSprintPipeline", scheduler=SCMScheduler(), **_sana_parts(folder, **options))


def make_pixart_sigma(folder: Path) -> None:
    from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, PixArtTransformer2DModel

    tokenizer = make_spiece(folder / "tokenizer")
    _save(
        folder,
        "PixArtSigmaPipeline",
        transformer=PixArtTransformer2DModel(
            sample_size=8,
            num_layers=1,
            patch_size=2,
            attention_head_dim=8,
            num_attention_heads=2,
            caption_channels=HIDDEN,
            in_channels=4,
            cross_attention_dim=16,
            out_channels=8,
            use_additional_conditions=False,
        ),
        scheduler=DPMSolverMultistepScheduler(**{**NOISE, "beta_schedule": "linear"}),
        vae=AutoencoderKL(**VAE, scaling_factor=0.13025),
        text_encoder=_t5(len(tokenizer)),
        tokenizer=tokenizer,
    )
    (folder / "tokenizer" / "tokenizer.json").unlink(missing_ok=True)
    make_spiece(folder / "tokenizer")


def make_lumina2(folder: Path) -> None:
    from diffusers import Lumina2Transformer2DModel

    tokenizer = _gemma_tokenizer(folder / "tokenizer")
    _save(
        folder,
        "Lumina2Pipeline",
        transformer=Lumina2Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=16,
            hidden_size=16,
            num_layers=1,
            num_refiner_layers=1,
            num_attention_heads=2,
            num_kv_heads=1,
            multiple_of=16,
            axes_dim_rope=(4, 2, 2),
            axes_lens=(600, 64, 64),
            cap_feat_dim=HIDDEN,
        ),
        scheduler=_flow(),
        vae=_vae(),
        text_encoder=_gemma(len(tokenizer)),
        tokenizer=tokenizer,
    )


def make_chroma(folder: Path) -> None:
    from diffusers import ChromaTransformer2DModel

    tokenizer = _gemma_tokenizer(folder / "tokenizer")
    _save(
        folder,
        "ChromaPipeline",
        transformer=ChromaTransformer2DModel(
            patch_size=1,
            in_channels=64,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=HIDDEN,
            axes_dims_rope=(4, 4, 8),
            approximator_hidden_dim=32,
            approximator_layers=1,
            approximator_num_channels=16,
        ),
        scheduler=_flow(),
        vae=_vae(),
        text_encoder=_t5(len(tokenizer)),
        tokenizer=tokenizer,
    )


def make_auraflow(folder: Path) -> None:
    from diffusers import AuraFlowTransformer2DModel, AutoencoderKL
    from transformers import UMT5Config, UMT5EncoderModel

    tokenizer = _gemma_tokenizer(folder / "tokenizer")
    config = UMT5Config(vocab_size=len(tokenizer), d_model=HIDDEN, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    _save(
        folder,
        "AuraFlowPipeline",
        transformer=AuraFlowTransformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_mmdit_layers=1,
            num_single_dit_layers=1,
            caption_projection_dim=32,
            joint_attention_dim=HIDDEN,
            attention_head_dim=8,
            num_attention_heads=4,
            pos_embed_max_size=64,
        ),
        scheduler=_flow(),
        vae=AutoencoderKL(**VAE, scaling_factor=0.13025),
        text_encoder=UMT5EncoderModel(config),
        tokenizer=tokenizer,
    )


BUILDERS: dict[str, Callable[[Path], object]] = {
    "sd15": make_tiny_pipeline,
    "sd21-v": make_sd21,
    "sdxl": make_tiny_xl,
    "sdxl-turbo": make_tiny_xl,
    "sdxs": make_sdxs,
    "lcm": make_lcm,
    "sd3": make_sd3,
    "flux-dev": make_flux,
    "flux-schnell": lambda folder: make_flux(folder, guidance_embeds=False),
    "flux2-klein": make_klein,
    "z-image-turbo": make_z_image,
    "qwen-image": make_qwen_image,
    "sana": make_sana,
    "sana-sprint": make_sana_sprint,
    "pixart-sigma": make_pixart_sigma,
    "lumina2": make_lumina2,
    "chroma": make_chroma,
    "auraflow": make_auraflow,
}
