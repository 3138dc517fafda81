"""Converts images and model events to database rows and back."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from typing import Any

from canvas import validation
from canvas.errors import InvalidInput
from canvas.request import CLIENTS, MAX_SEED, RANDOM_SEED, GeneratedImage, GenerationRequest, rename_old_fields

# Columns of generated_images and the request fields they hold; other fields go to `options`.
REQUEST_COLUMNS = {
    "prompt": "prompt",
    "negative_prompt": "negative_prompt",
    "style": "style",
    "model_used": "model_key",
    "image_width": "width",
    "image_height": "height",
    "num_inference_steps": "num_inference_steps",
    "guidance_scale": "guidance_scale",
    "scheduler": "scheduler",
    "seed": "seed",
    "task": "task",
    "format_used": "image_format",
    "quality": "quality",
}

# Columns with the name of the image's field.
IMAGE_COLUMNS = (
    "id", "filename", "filepath", "enhanced_prompt", "generation_time", "file_size", "device", "dtype",
    "model_revision", "owner", "favourite", "parent_id",
)  # fmt: skip

TEXT_FIELDS = ("filename", "filepath", "enhanced_prompt", "device", "dtype", "model_revision", "engine")
REQUEST_FIELDS = frozenset(field.name for field in fields(GenerationRequest))
LEGACY_VALUES = {"jpg": "jpeg"}


@dataclass
class ModelEvent:
    """A download or load of a model: a row of `model_downloads`.

    `event` is "download" or "load"; `status` is "complete", "failed" or "cancelled".
    """

    model_name: str
    event: str = "download"
    repo_id: str = ""
    revision: str = ""
    bytes: int | None = None
    file_count: int | None = None
    download_time: float | None = None  # seconds
    status: str = "complete"
    error: str = ""
    model_size: str = ""
    id: int | None = None
    downloaded_at: datetime | None = None


def to_row(image: GeneratedImage) -> dict[str, Any]:
    """The columns of `generated_images` with their values."""
    request = image.request.to_dict()
    row = {column: request.pop(name) for column, name in REQUEST_COLUMNS.items()}
    row |= {column: getattr(image, column) for column in IMAGE_COLUMNS}
    row["channel"] = image.client
    row["seed"] = None if row["seed"] == RANDOM_SEED else row["seed"]
    row["favourite"] = int(image.favourite)
    row["created_at"] = timestamp(image.created_at)
    row["options"] = json.dumps({"notes": list(image.notes), "engine": image.engine, **request}, ensure_ascii=False)
    return row


def from_row(row: Mapping[str, Any]) -> GeneratedImage:
    """The inverse of `to_row`; old rows are read, too."""
    options = rename_old_fields(parse_json_object(str(row["options"])))
    return image_from_dict(
        {
            **{name: row[column] for column, name in REQUEST_COLUMNS.items()},
            **{name: value for name, value in options.items() if name in REQUEST_FIELDS},
            **{column: row[column] for column in IMAGE_COLUMNS},
            "client": row["channel"],
            "created_at": row["created_at"],
            "notes": options.get("notes", ()),
            "engine": options.get("engine"),
        }
    )


def image_from_dict(values: Mapping[str, Any]) -> GeneratedImage:
    """The inverse of `GeneratedImage.settings()`, also with the fields of its row and old names.

    An invalid value becomes the default, with a note.
    """
    values = rename_old_fields(values)
    request, problems = _request_or_defaults({name: value for name, value in values.items() if name in REQUEST_FIELDS})
    notes, client = values.get("notes"), _text(values.get("client", values.get("channel")))
    notes = [_text(str(note)) for note in notes] if isinstance(notes, list | tuple) else []
    texts: dict[str, Any] = {name: _text(values.get(name)) for name in TEXT_FIELDS}
    return GeneratedImage(
        request=request,
        notes=(*notes, *problems),
        created_at=parse_time(values.get("created_at")),
        generation_time=_number(values.get("generation_time")),
        id=_row_id(values.get("id")),
        file_size=int(_number(values.get("file_size"))),
        favourite=values.get("favourite") == 1,
        parent_id=_row_id(values.get("parent_id")),
        owner=_text(values.get("owner")) or "local",
        client=client if client in CLIENTS else "",
        **texts,
    )


def event_to_row(event: ModelEvent) -> dict[str, Any]:
    """The columns of `model_downloads` with their values."""
    return {**asdict(event), "downloaded_at": timestamp(event.downloaded_at or datetime.now(UTC))}


def event_from_row(row: Mapping[str, Any]) -> ModelEvent:
    """The inverse of `event_to_row`."""
    values = {field.name: row[field.name] for field in fields(ModelEvent)}
    values |= {"downloaded_at": parse_time(row["downloaded_at"]), "model_size": row["model_size"] or ""}
    return ModelEvent(**values)


def parse_json_object(text: str | bytes) -> dict[str, Any]:
    """The values of a JSON object; none if the text is anything else."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def parse_time(value: object) -> datetime:
    """A datetime in UTC from ISO 8601 text; UTC without a zone, 1970 if invalid."""
    try:
        time = datetime.fromisoformat(str(value))
        return time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)
    except (ValueError, OverflowError):  # the zone can move the year out of range
        return datetime.fromtimestamp(0, UTC)


def timestamp(time: datetime) -> str:
    """The text for a database column, in UTC."""
    # The format of SQLite's CURRENT_TIMESTAMP, so that old and new rows sort as text.
    return time.astimezone(UTC).replace(tzinfo=None).isoformat(" ", "microseconds")


def _request_or_defaults(values: dict[str, Any]) -> tuple[GenerationRequest, list[str]]:
    """The request with these values, and a note for each invalid one."""
    values = {name: value for name, value in values.items() if value is not None}
    values["model_key"] = _text(values.get("model_key"))
    notes: list[str] = []
    for name in ("style", "image_format"):
        if isinstance(values.get(name), str):
            values[name] = LEGACY_VALUES.get(values[name].lower(), values[name].lower())
    while True:
        try:
            return GenerationRequest.from_dict(values), notes
        except InvalidInput as error:
            notes.append(f"Invalid metadata: {error}")
            if error.field == "prompt":
                values["prompt"] = _clean(values.get("prompt")) or "(no prompt)"
            elif error.field == "negative_prompt":
                values["negative_prompt"] = _clean(values["negative_prompt"])
            else:
                del values[error.field]


def _clean(value: object) -> str:
    """Valid prompt text: no control characters, not too long."""
    allowed = (
        character
        for character in str(value or "")
        if character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cs")
    )
    return "".join(allowed)[: validation.MAX_TEXT].strip()


def _text(value: object) -> str:
    # JSON may contain lone surrogates, which cannot be encoded.
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else ""


def _number(value: object) -> float:
    """A valid number of seconds or bytes, or 0."""
    return float(value) if isinstance(value, int | float) and 0 <= value <= MAX_SEED else 0.0


def _row_id(value: object) -> int | None:
    return value if isinstance(value, int) and 0 < value <= MAX_SEED else None
