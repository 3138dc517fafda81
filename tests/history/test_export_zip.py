from __future__ import annotations

import csv
import io
import json
import tracemalloc
import zipfile
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from canvas.errors import InvalidInput
from canvas.history.export_zip import export_zip
from canvas.history.images import ImageRepository
from canvas.history.infotext import read_infotext
from canvas.history.metadata import read_settings
from canvas.history.queries import Query
from canvas.history.rows import image_from_dict
from canvas.request import GenerationRequest

from .conftest import make_image


def exported(repository: ImageRepository, query: Query | None = None, **options: Any) -> zipfile.ZipFile:
    chunks = export_zip(repository.database, repository.storage, query or Query(), **options)
    archive = zipfile.ZipFile(io.BytesIO(b"".join(chunks)))
    assert archive.testzip() is None
    return archive


def lines(archive: zipfile.ZipFile) -> list[dict[str, Any]]:
    return [json.loads(line) for line in archive.read("metadata.jsonl").splitlines()]


def table(archive: zipfile.ZipFile) -> list[dict[str, str]]:
    text = archive.read("metadata.csv").decode("utf-8-sig")
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_files_are_copied_and_their_settings_listed(repository: ImageRepository) -> None:
    images = [repository.save(make_image(seed=seed, owner="anna")) for seed in range(3)]
    archive = exported(repository)
    assert archive.namelist() == [*(f"pictures/{image.filename}" for image in images), "metadata.jsonl", "metadata.csv"]
    for image, record, row in zip(images, lines(archive), table(archive), strict=True):
        content = archive.read(f"pictures/{image.filename}")
        assert content == repository.storage.path_of(image).read_bytes()
        assert replace(image_from_dict(record), filepath=image.filepath, owner="anna") == image
        assert (row["prompt"], row["seed"]) == (image.request.prompt, str(image.request.seed))
    assert b"anna" not in archive.read("metadata.jsonl") + archive.read("metadata.csv")


@pytest.mark.parametrize("image_format", ["png", "jpeg", "webp"])
def test_converted_files_keep_their_settings(repository: ImageRepository, image_format: str, tmp_path: Path) -> None:
    for original in ("png", "jpeg", "webp"):
        repository.save(make_image(image_format=original, quality=90))
    archive = exported(repository, image_format=image_format, quality=50)
    for record in lines(archive):
        path = tmp_path / record["filename"]
        path.write_bytes(archive.read(f"pictures/{record['filename']}"))
        assert path.stat().st_size == record["file_size"]
        with Image.open(path) as image:
            assert image.format == image_format.upper()
        found = read_settings(path)
        assert found is not None
        assert found.request.image_format == record["image_format"] == image_format


def test_quality_changes_the_file_size(repository: ImageRepository) -> None:
    noise = Image.effect_noise((256, 256), 90).convert("RGB")
    repository.save(make_image(image=noise))
    small, large = (
        lines(exported(repository, image_format="jpeg", quality=quality))[0]["file_size"] for quality in (10, 95)
    )
    assert small * 3 < large


def test_only_matching_images_of_the_owner_are_exported(repository: ImageRepository) -> None:
    for owner in ("anna", "berta", "anna"):
        repository.save(make_image(owner=owner))
    archive = exported(repository, Query(owner="anna", ids=(2, 3), limit=0))
    assert [record["id"] for record in lines(archive)] == [3]


def test_formulas_are_escaped_in_the_csv_only(repository: ImageRepository) -> None:
    prompts = ["=1+1", "+cmd", "-not", "@home", "a = b", 'two\nlines, "and" more']
    for prompt in prompts:
        repository.save(make_image(prompt=prompt))
    archive = exported(repository)
    assert [record["prompt"] for record in lines(archive)] == prompts
    assert [row["prompt"] for row in table(archive)] == [
        "'=1+1", "'+cmd", "'-not", "'@home", "a = b", "two\nlines, \"and\" more",
    ]  # fmt: skip


def test_only_a_finished_export_is_recorded(repository: ImageRepository) -> None:
    repository.save(make_image())
    unfinished = export_zip(repository.database, repository.storage, Query())
    next(unfinished)
    unfinished.close()
    assert repository.database.rows("SELECT * FROM exports") == []
    content = b"".join(
        export_zip(repository.database, repository.storage, Query(), image_format="webp", filename="x.zip")
    )
    (row,) = repository.database.rows("SELECT * FROM exports")
    assert (row["filename"], row["file_size"], row["item_count"]) == ("x.zip", len(content), 1)
    assert row["export_type"] == "zip, webp"


def test_an_empty_export_is_a_valid_zip(repository: ImageRepository) -> None:
    archive = exported(repository)
    assert archive.namelist() == ["metadata.jsonl", "metadata.csv"]


def test_unreadable_files_are_listed_and_the_others_exported(repository: ImageRepository) -> None:
    missing, readable = repository.save(make_image()), repository.save(make_image())
    repository.storage.path_of(missing).unlink()
    broken = repository.save(make_image())
    repository.storage.path_of(broken).write_bytes(b"broken")
    archive = exported(repository, image_format="jpeg")
    assert [record["id"] for record in lines(archive)] == [readable.id]
    errors = archive.read("not-exported.txt").decode()
    assert missing.filename in errors
    assert broken.filename in errors


def test_times_before_1980(repository: ImageRepository) -> None:
    repository.save(make_image(created_at=datetime(1970, 1, 1, tzinfo=UTC)))
    assert lines(exported(repository))[0]["created_at"].startswith("1970-01-01")


@pytest.mark.parametrize(
    ("options", "field"),
    [({"image_format": "gif"}, "image_format"), ({"quality": 0}, "quality"), ({"quality": 101}, "quality")],
)
def test_invalid_options_raise_before_the_first_chunk(
    repository: ImageRepository, options: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        export_zip(repository.database, repository.storage, Query(), **options)
    assert caught.value.field == field


@pytest.mark.long
def test_memory_does_not_grow_with_the_number_of_images(repository: ImageRepository) -> None:
    first = repository.save(make_image(image=Image.effect_noise((512, 512), 90).convert("RGB")))
    path = repository.storage.path_of(first)
    copies = []
    for number in range(1, 2000):
        name = f"{number:032x}.png"
        path.with_name(name).hardlink_to(path)
        filepath = first.filepath.replace(first.filename, name)
        copies.append(replace(first, id=None, filename=name, filepath=filepath))
    repository.database.save_images(copies)
    tracemalloc.start()
    size = sum(map(len, export_zip(repository.database, repository.storage, Query())))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size > 2000 * first.file_size > 400_000_000
    assert peak < 50_000_000


def test_converted_files_contain_infotext(repository: ImageRepository) -> None:
    repository.save(make_image())
    archive = exported(repository, image_format="jpeg")
    with Image.open(archive.open(archive.namelist()[0])) as image:
        comment = image.getexif().get_ifd(0x8769)[0x9286].removeprefix(b"UNICODE\0")
    request = GenerationRequest.from_dict(read_infotext(comment.decode("utf-16-be")).values)
    assert (request.seed, request.image_format) == (7, "jpeg")


@pytest.mark.parametrize("quality", [1, 100])
def test_the_limits_of_the_quality_are_allowed(repository: ImageRepository, quality: int) -> None:
    repository.save(make_image())
    assert lines(exported(repository, image_format="webp", quality=quality))[0]["quality"] == quality


def test_entries_have_the_time_of_the_image_and_may_be_read(repository: ImageRepository) -> None:
    repository.save(make_image(created_at=datetime(2026, 5, 4, 23, 2, 2, tzinfo=timezone(timedelta(hours=-5)))))
    entry, *others = exported(repository).infolist()
    assert entry.date_time == (2026, 5, 5, 4, 2, 2)
    assert {each.external_attr >> 16 for each in (entry, *others)} == {0o644}


def test_lists_of_settings_are_readable_text(repository: ImageRepository) -> None:
    repository.save(make_image(prompt="Füchse", notes=("für später",)))
    archive = exported(repository)
    assert "Füchse" in archive.read("metadata.jsonl").decode()
    assert table(archive)[0]["notes"] == '["für später"]'
