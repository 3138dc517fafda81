"""The answers of the HTTP APIs, for the OpenAPI description at `/docs` and the clients made from it."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field


class ApiError(BaseModel):
    """OpenAI's error object."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorReply(BaseModel):
    """An error of `/v1`."""

    error: ApiError


class ImageItem(BaseModel):
    """A generated image, both as its file in base64 and as its address."""

    b64_json: str
    url: str
    revised_prompt: str = Field(description="The prompt as the model got it, with notes in brackets.")
    seed: int


class InputTokensDetails(BaseModel):
    """Always 0."""

    image_tokens: int
    text_tokens: int


class Usage(BaseModel):
    """Always 0: nothing here counts tokens."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    total_tokens: int


class ImagesReply(BaseModel):
    """Generated images."""

    created: int = Field(description="Seconds since 1970.")
    data: list[ImageItem]
    output_format: str
    size: str = Field(examples=["512x512"])
    quality: str
    background: str
    usage: Usage


class ModelReply(BaseModel):
    """A model."""

    id: str
    object: str
    created: int
    owned_by: str


class ModelList(BaseModel):
    """All models."""

    object: str
    data: list[ModelReply]


class OwnError(BaseModel):
    """Code and sentence of an error."""

    code: str
    message: str


class OwnErrorReply(BaseModel):
    """An error of the routes beside the APIs of other programs."""

    error: OwnError


class A1111Error(BaseModel):
    """An error of `/sdapi`."""

    error: str
    detail: str
    errors: str


class A1111Images(BaseModel):
    """Images in base64; `info` is a JSON string."""

    images: list[str]
    parameters: dict[str, Any]
    info: str


class A1111Extra(BaseModel):
    """An upscaled image in base64."""

    html_info: str
    image: str


class A1111ExtraBatch(BaseModel):
    """Upscaled images in base64."""

    html_info: str
    images: list[str]


class A1111PngInfo(BaseModel):
    """The settings embedded in an image file."""

    info: str
    items: dict[str, Any]
    parameters: dict[str, Any]


class A1111State(BaseModel):
    """The running job."""

    skipped: bool
    interrupted: bool
    stopping_generation: bool
    job: str
    job_count: int
    job_timestamp: str
    job_no: int
    sampling_step: int
    sampling_steps: int


class A1111Progress(BaseModel):
    """The progress of the running job; `progress` is 0 to 1."""

    progress: float
    eta_relative: float
    state: A1111State
    current_image: str | None
    textinfo: str | None


class A1111Options(BaseModel):
    """The options that this server has."""

    sd_model_checkpoint: str
    sd_checkpoint_hash: str | None
    samples_format: str


class A1111Model(BaseModel):
    """A model; `title` is what `options` takes."""

    title: str
    model_name: str
    hash: str | None
    sha256: str | None
    filename: str
    config: str | None


class A1111Sampler(BaseModel):
    """A scheduler of diffusers."""

    name: str
    aliases: list[str]
    options: dict[str, str]


class A1111Schedule(BaseModel):
    """A noise schedule."""

    name: str
    label: str
    aliases: list[str] | None
    default_rho: float
    need_inner_model: bool


class A1111Upscaler(BaseModel):
    """An upscaler."""

    name: str
    model_name: str | None
    model_path: str | None
    model_url: str | None
    scale: float


class A1111Style(BaseModel):
    """A style with the words that it adds."""

    name: str
    prompt: str
    negative_prompt: str


class A1111Lora(BaseModel):
    """A LoRA file."""

    name: str
    alias: str
    path: str
    metadata: dict[str, Any]


class A1111Memory(BaseModel):
    """Bytes of RAM."""

    ram: dict[str, float]
    cuda: dict[str, Any]


class HealthReply(BaseModel):
    """The state of the server."""

    status: str
    ready: bool = Field(description="Whether the default model is in memory.")
    model: str
    device: str | None
    dtype: str | None
    jobs: dict[str, int]
    folder: str
    requires_api_key: bool
    asks_for_keys: bool = Field(deprecated=True)
    free_bytes: int | None
