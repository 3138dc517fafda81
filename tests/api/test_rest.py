from __future__ import annotations

import io
import zipfile
from pathlib import Path

import httpx
import pytest
from PIL import Image

from canvas import GenerationRequest, Studio
from canvas.api.rest import UNFINISHED, count_unfinished
from canvas.jobs.job import Job
from canvas.request import GeneratedImage
from canvas.server.discovery import find_server
from tests.app_server import save_image, serving


@pytest.fixture(scope="module")
def image(served: Studio) -> GeneratedImage:
    [image] = served.generate(GenerationRequest("a red boat", num_inference_steps=1, seed=5))
    return image


def test_picture_is_the_stored_file(served: Studio, url: str, image: GeneratedImage) -> None:
    response = httpx.get(f"{url}/pictures/{image.filename}")
    assert response.status_code == 200
    assert response.headers["content-type"] == "image/png"
    assert response.content == served.image_path(image.filename).read_bytes()


def test_thumbnail_is_a_small_webp(url: str, image: GeneratedImage) -> None:
    response = httpx.get(f"{url}/thumbnails/{image.filename}")
    assert response.headers["content-type"] == "image/webp"
    assert max(Image.open(io.BytesIO(response.content)).size) <= 512


@pytest.mark.parametrize("name", ["nope.png", "..%2f..%2fetc%2fpasswd", "%00", "a" * 5000])
@pytest.mark.parametrize("folder", ["pictures", "thumbnails"])
def test_no_other_file_is_served(url: str, folder: str, name: str) -> None:
    response = httpx.get(f"{url}/{folder}/{name}")
    assert response.status_code == 404
    assert b"root:" not in response.content


def test_health(url: str, image: GeneratedImage) -> None:
    health = httpx.get(f"{url}/healthz").json()
    assert health["status"] == "ok"
    assert health["ready"] is True
    assert health["model"] == "starter"
    assert health["device"] == "cpu"
    assert health["free_bytes"] > 0
    assert health["requires_api_key"] is False
    assert health["asks_for_keys"] is False, "the old name"


def test_health_of_a_moved_data_folder(tmp_path: Path) -> None:
    folder, moved = tmp_path / "data", tmp_path / "moved"
    with serving(folder) as studio:
        assert find_server(folder)
        folder.rename(moved)
        response = httpx.get(f"{studio.url}/healthz")
        assert response.status_code == 503
        assert response.json()["status"] == "data folder missing"
        assert response.json()["free_bytes"] is None
        assert str(tmp_path) not in response.text
        assert httpx.get(f"{studio.url}/metrics").status_code in (200, 507)
        assert find_server(moved) is None, "its server cannot use it"
        moved.rename(folder)
        assert httpx.get(f"{studio.url}/healthz").json()["status"] == "ok"
        assert "canvas_disk_free_bytes" in httpx.get(f"{studio.url}/metrics").text


@pytest.mark.parametrize("folder", ["pictures", "thumbnails"])
def test_an_unchanged_image_is_not_sent_again(url: str, image: GeneratedImage, folder: str) -> None:
    address = f"{url}/{folder}/{image.filename}"
    response = httpx.get(address)
    assert response.headers["cache-control"] == "private, no-cache", "it may be deleted"
    again = httpx.get(address, headers={"if-none-match": response.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert httpx.get(address, headers={"if-none-match": '"other"'}).status_code == 200
    head = httpx.head(address)
    assert (head.status_code, head.content) == (200, b"")


@pytest.mark.parametrize(("image_format", "suffix"), [("png", ".png"), ("jpeg", ".jpg"), ("webp", ".webp")])
def test_a_download_has_the_format_that_was_asked_for(
    served: Studio, url: str, image: GeneratedImage, image_format: str, suffix: str
) -> None:
    response = httpx.get(f"{url}/downloads/{image.filename}", params={"image_format": image_format})
    assert response.headers["content-type"] == f"image/{image_format}"
    name = Path(image.filename).stem + suffix
    assert response.headers["content-disposition"] == f'attachment; filename="{name}"'
    assert Image.open(io.BytesIO(response.content)).format == image_format.upper()
    stored = served.image_path(image.filename).read_bytes()
    assert (response.content == stored) is (image_format == "png")
    assert b"a red boat" in response.content or image_format != "png"


def test_other_formats_are_refused(url: str, image: GeneratedImage) -> None:
    assert httpx.get(f"{url}/downloads/{image.filename}?image_format=bmp").status_code == 400
    assert httpx.get(f"{url}/downloads/nope.png").status_code == 404


def exported(url: str, **params: object) -> list[str]:
    content = httpx.get(f"{url}/export.zip", params=params, timeout=60).content
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return [Path(name).name for name in archive.namelist()]


def test_an_export_has_the_images_of_the_caller_alone(served: Studio, url: str, image: GeneratedImage) -> None:
    other = save_image(served, "somebody else")
    params = {"ids": f"{image.id},{other.id}"}
    names = exported(url, **params)
    assert image.filename in names
    assert other.filename not in names
    assert Path(image.filename).stem + ".webp" in exported(url, **params, image_format="webp", quality="100")


@pytest.mark.parametrize("params", [{"quality": "0"}, {"quality": "101"}, {"ids": "x"}, {"image_format": "bmp"}])
def test_a_wrong_export_is_refused(url: str, params: dict[str, str]) -> None:
    assert httpx.get(f"{url}/export.zip", params={"image_format": "png", **params}).status_code == 400


def test_the_description_of_the_api_has_keys_and_answers(url: str) -> None:
    schema = httpx.get(f"{url}/openapi.json").json()
    assert schema["security"] == [{"ApiKey": []}, {}], "a key or none"
    assert schema["components"]["securitySchemes"]["ApiKey"]["scheme"] == "bearer"
    assert {"200", "503"} <= schema["paths"]["/healthz"]["get"]["responses"].keys()
    assert {"200", "404"} <= schema["paths"]["/pictures/{filename}"]["get"]["responses"].keys()
    assert "image/*" in schema["paths"]["/downloads/{filename}"]["get"]["responses"]["200"]["content"]
    assert "application/zip" in schema["paths"]["/export.zip"]["get"]["responses"]["200"]["content"]
    assert "head" not in schema["paths"]["/healthz"]
    assert httpx.get(f"{url}/docs").status_code == 200
    assert httpx.get(f"{url}/redoc").status_code == 404


def test_unfinished_jobs_are_counted_by_status() -> None:
    jobs = [Job("ann", "generate", "starter") for _ in range(4)]
    for job, status in zip(jobs, ("running", "queued", "queued", "done"), strict=True):
        job.update(status=status)
    assert count_unfinished(jobs) == dict.fromkeys(UNFINISHED, 0) | {"queued": 2, "running": 1}


def test_metrics_count_images_and_loaded_models(url: str, image: GeneratedImage) -> None:
    text = httpx.get(f"{url}/metrics").text
    assert 'canvas_pictures_total{model="starter"}' in text
    [loaded] = [line for line in text.splitlines() if line.startswith("canvas_worker_models{")]
    assert 'model="starter"' in loaded
    assert loaded.endswith("} 1.0")
    assert 'canvas_jobs{status="queued"} 0.0' in text
