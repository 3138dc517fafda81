from __future__ import annotations

import csv
import io
import json
import tracemalloc
import zipfile
from dataclasses import replace
from datetime import UTC, datetime
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


def exported(
    gallery: ImageRepository, query: Query | None = None, **options: Any
) -> zipfile.ZipFile:
    pieces = export_zip(gallery.store, gallery.folder, query or Query(), **options)
    archive = zipfile.ZipFile(io.BytesIO(b"".join(pieces)))
    assert archive.testzip() is None
    return archive


def lines(archive: zipfile.ZipFile) -> list[dict[str, Any]]:
    return [json.loads(line) for line in archive.read("metadata.jsonl").splitlines()]


def table(archive: zipfile.ZipFile) -> list[dict[str, str]]:
    text = archive.read("metadata.csv").decode("utf-8-sig")
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_files_stay_as_they_are_with_their_settings_beside(gallery: ImageRepository) -> None:
    kept = [gallery.save(make_image(seed=seed, owner="anna")) for seed in range(3)]
    archive = exported(gallery)
    assert archive.namelist() == [
        *(f"pictures/{image.filename}" for image in kept),
        "metadata.jsonl",
        "metadata.csv",
    ]
    for image, record, row in zip(kept, lines(archive), table(archive), strict=True):
        content = archive.read(f"pictures/{image.filename}")
        assert content == gallery.folder.path_of(image).read_bytes()
        assert replace(image_from_dict(record), filepath=image.filepath, owner="anna") == image
        assert (row["prompt"], row["seed"]) == (image.request.prompt, str(image.request.seed))
    assert b"anna" not in archive.read("metadata.jsonl") + archive.read("metadata.csv")


@pytest.mark.parametrize("image_format", ["png", "jpeg", "webp"])
def test_pictures_are_converted_and_keep_their_settings(
    gallery: ImageRepository, image_format: str, tmp_path: Path
) -> None:
    for original in ("png", "jpeg", "webp"):
        gallery.save(make_image(image_format=original, quality=90))
    archive = exported(gallery, image_format=image_format, quality=50)
    for record in lines(archive):
        path = tmp_path / record["filename"]
        path.write_bytes(archive.read(f"pictures/{record['filename']}"))
        assert path.stat().st_size == record["file_size"]
        with Image.open(path) as picture:
            assert picture.format == image_format.upper()
        found = read_settings(path)
        assert found is not None
        assert found.request.image_format == record["image_format"] == image_format


def test_quality_counts(gallery: ImageRepository) -> None:
    noise = Image.effect_noise((256, 256), 90).convert("RGB")
    gallery.save(make_image(image=noise))
    small, large = (
        lines(exported(gallery, image_format="jpeg", quality=quality))[0]["file_size"]
        for quality in (10, 95)
    )
    assert small * 3 < large


def test_only_the_selection_of_the_owner_is_exported(gallery: ImageRepository) -> None:
    for owner in ("anna", "berta", "anna"):
        gallery.save(make_image(owner=owner))
    archive = exported(gallery, Query(owner="anna", ids=(2, 3), limit=0))
    assert [record["id"] for record in lines(archive)] == [3]


def test_formulas_are_defused_in_the_table_only(gallery: ImageRepository) -> None:
    prompts = ["=1+1", "+cmd", "-not", "@home", "a = b", 'two\nlines, "and" more']
    for prompt in prompts:
        gallery.save(make_image(prompt=prompt))
    archive = exported(gallery)
    assert [record["prompt"] for record in lines(archive)] == prompts
    assert [row["prompt"] for row in table(archive)] == [
        "'=1+1", "'+cmd", "'-not", "'@home", "a = b", "two\nlines, \"and\" more",
    ]  # fmt: skip


def test_an_export_is_recorded_when_it_is_finished(gallery: ImageRepository) -> None:
    gallery.save(make_image())
    stopped = export_zip(gallery.store, gallery.folder, Query())
    next(stopped)
    stopped.close()
    assert gallery.store.rows("SELECT * FROM exports") == []
    content = b"".join(
        export_zip(gallery.store, gallery.folder, Query(), image_format="webp", filename="x.zip")
    )
    (row,) = gallery.store.rows("SELECT * FROM exports")
    assert (row["filename"], row["file_size"], row["item_count"]) == ("x.zip", len(content), 1)
    assert row["export_type"] == "zip, webp"


def test_an_empty_export_is_a_zip(gallery: ImageRepository) -> None:
    archive = exported(gallery)
    assert archive.namelist() == ["metadata.jsonl", "metadata.csv"]


def test_a_lost_picture_is_said_and_the_others_come(gallery: ImageRepository) -> None:
    lost, there = gallery.save(make_image()), gallery.save(make_image())
    gallery.folder.path_of(lost).unlink()
    broken = gallery.save(make_image())
    gallery.folder.path_of(broken).write_bytes(b"broken")
    archive = exported(gallery, image_format="jpeg")
    assert [record["id"] for record in lines(archive)] == [there.id]
    problems = archive.read("not-exported.txt").decode()
    assert lost.filename in problems
    assert broken.filename in problems


def test_times_that_zip_does_not_know(gallery: ImageRepository) -> None:
    gallery.save(make_image(created_at=datetime(1970, 1, 1, tzinfo=UTC)))
    assert lines(exported(gallery))[0]["created_at"].startswith("1970-01-01")


@pytest.mark.parametrize(
    ("options", "field"), [({"image_format": "gif"}, "image_format"), ({"quality": 0}, "quality")]
)
def test_wrong_options_are_refused_before_the_first_piece(
    gallery: ImageRepository, options: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        export_zip(gallery.store, gallery.folder, Query(), **options)
    assert caught.value.field == field


def test_memory_does_not_grow_with_the_pictures(gallery: ImageRepository) -> None:
    first = gallery.save(make_image(image=Image.effect_noise((512, 512), 90).convert("RGB")))
    path = gallery.folder.path_of(first)
    copies = []
    for number in range(1, 2000):
        name = f"{number:032x}.png"
        path.with_name(name).hardlink_to(path)
        filepath = first.filepath.replace(first.filename, name)
        copies.append(replace(first, id=None, filename=name, filepath=filepath))
    gallery.store.record_all(copies)
    tracemalloc.start()
    size = sum(map(len, export_zip(gallery.store, gallery.folder, Query())))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size > 2000 * first.file_size > 400_000_000
    assert peak < 50_000_000


def test_infotext_of_a_converted_picture_is_read_by_others(gallery: ImageRepository) -> None:
    gallery.save(make_image())
    archive = exported(gallery, image_format="jpeg")
    with Image.open(archive.open(archive.namelist()[0])) as picture:
        comment = picture.getexif().get_ifd(0x8769)[0x9286].removeprefix(b"UNICODE\0")
    request = GenerationRequest.from_dict(read_infotext(comment.decode("utf-16-be")).values)
    assert (request.seed, request.image_format) == (7, "jpeg")
