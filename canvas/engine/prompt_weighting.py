"""Prompt weights, `(word:1.3)`, `[word]`, `BREAK`, and prompts of more than 77 tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from canvas.prompt_syntax import split_chunks, strip_weights

if TYPE_CHECKING:
    import torch


def encode_weighted_prompt(pipeline: Any, prompt: str, negative_prompt: str) -> dict[str, Any]:
    """The pipeline's arguments in place of both prompts: embeddings, (1, 77 n, D) each."""
    import torch

    encoders = [pipeline.text_encoder]
    if getattr(pipeline, "text_encoder_2", None) is not None:
        encoders.append(pipeline.text_encoder_2)
    with torch.no_grad():
        provider = _embeddings_provider(pipeline, encoders)
        embeds = [_encode(provider, text) for text in (prompt, negative_prompt)]
        names = ("prompt_embeds", "negative_prompt_embeds")
        arguments = dict(zip(names, _pad_embeds(provider, *embeds), strict=True))
        if len(encoders) > 1:
            arguments["pooled_prompt_embeds"] = _encode_pooled(pipeline, prompt)
            arguments["negative_pooled_prompt_embeds"] = _encode_pooled(pipeline, negative_prompt)
        return arguments


def supports_weighting(pipeline: Any) -> bool:
    """Whether the pipeline uses CLIP text encoders only, as Stable Diffusion and SDXL do."""
    return type(pipeline).__name__.startswith("StableDiffusion") and not hasattr(pipeline, "text_encoder_3")


def _embeddings_provider(pipeline: Any, encoders: list[Any]) -> Any:
    from compel.embeddings_provider import (
        EmbeddingsProvider,
        EmbeddingsProviderMulti,
        ReturnedEmbeddingsType,
        SplitLongTextMode,
    )

    options = {"truncate": False, "split_long_text_mode": SplitLongTextMode.PHRASES}
    if len(encoders) == 1:
        return EmbeddingsProvider(pipeline.tokenizer, encoders[0], **options)
    return EmbeddingsProviderMulti(
        [pipeline.tokenizer, pipeline.tokenizer_2],
        encoders,
        returned_embeddings_type=ReturnedEmbeddingsType.PENULTIMATE_HIDDEN_STATES_NON_NORMALIZED,
        **options,
    )


def _encode(provider: Any, prompt: str) -> torch.Tensor:
    chunks = split_chunks(prompt)
    prompt_embeds: torch.Tensor = provider.get_embeddings_for_weighted_prompt_fragments(
        [[text for text, _ in chunk] for chunk in chunks],
        [[weight for _, weight in chunk] for chunk in chunks],
        device=provider.text_encoder.device,
    )
    return prompt_embeds


def _pad_embeds(provider: Any, *embeds: torch.Tensor) -> list[torch.Tensor]:
    """Append embeddings of the empty prompt until all have the same length."""
    import torch

    longest = max(tensor.shape[1] for tensor in embeds)
    empty = _encode(provider, "")
    return [torch.cat([tensor] + [empty] * ((longest - tensor.shape[1]) // empty.shape[1]), dim=1) for tensor in embeds]


def _encode_pooled(pipeline: Any, prompt: str) -> torch.Tensor:
    """SDXL's pooled embedding: the second encoder's, of the first 77 tokens."""
    tokenizer, encoder = pipeline.tokenizer_2, pipeline.text_encoder_2
    tokens = tokenizer(
        strip_weights(prompt),
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    )
    pooled: torch.Tensor = encoder(tokens.input_ids.to(encoder.device)).text_embeds
    return pooled
