"""The app behind a real nginx, under a sub path and over HTTPS, as the README configures it."""

from __future__ import annotations

import os
import re
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
import openai
import pytest
from gradio_client import Client, handle_file
from PIL import Image
from playwright.sync_api import Browser, Page, expect
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send

from canvas import GenerationRequest, Studio
from canvas.history.api_keys import ApiKeyStore
from canvas.server.launch import listening_port
from canvas.server.routes import RestoreRootPathMiddleware, StripRootPathMiddleware
from tests.app_server import run_in_mcp_session, serving
from tests.server.asgi import call
from tests.ui.conftest import open_browser, wait_until_loaded

WRONG_ADDRESS = (403, 404, 405, 421)
README = Path(__file__).resolve().parent.parent.parent / "README.md"
NGINX_CONF = """
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port} ssl;
        ssl_certificate {folder}/certificate.pem;
        ssl_certificate_key {folder}/key.pem;
        {location}
    }}
}}
"""


class Proxied(NamedTuple):
    """A studio behind nginx: the public address without a trailing slash, and the certificate."""

    studio: Studio
    url: str
    verify: ssl.SSLContext

    def client(self, **options: object) -> httpx.Client:
        return httpx.Client(base_url=self.url, verify=self.verify, timeout=60, **options)  # type: ignore[arg-type]


def readme_location(server_url: str) -> str:
    """The lines of the README for nginx, with the address of a test server."""
    [location] = re.findall(r"`(location /canvas/ \{.*\})`", README.read_text(encoding="utf-8"))
    assert "http://127.0.0.1:7860" in location
    return str(location).replace("http://127.0.0.1:7860", server_url)


@contextmanager
def nginx(folder: Path, server_url: str) -> Iterator[str]:
    """A running nginx; yields its HTTPS address."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        if os.environ.get("CI"):
            pytest.fail("nginx is not installed; CI must not skip the tests of a reverse proxy.")
        pytest.skip("nginx is not installed: install the package `nginx-light`.")
    key = ["-newkey", "rsa:2048", "-nodes", "-keyout", str(folder / "key.pem"), "-out", str(folder / "certificate.pem")]
    names = ["-subj", "/CN=canvas.test", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "1"]
    subprocess.run(["openssl", "req", "-x509", *key, *names], check=True, capture_output=True)
    port = listening_port("127.0.0.1", 0)
    conf = folder / "nginx.conf"
    conf.write_text(NGINX_CONF.format(folder=folder, port=port, location=readme_location(server_url)))
    with subprocess.Popen([program, "-p", str(folder), "-c", str(conf), "-e", str(folder / "error.log")]) as process:
        try:
            yield f"https://127.0.0.1:{port}"
        finally:
            process.terminate()


@contextmanager
def proxied(folder: Path, **options: object) -> Iterator[Proxied]:
    with (
        serving(folder / "data", root_path="/canvas/", trusted_proxies=("127.0.0.1",), **options) as studio,
        nginx(folder, studio.url) as address,  # type: ignore[attr-defined]
    ):
        verify = ssl.create_default_context(cafile=str(folder / "certificate.pem"))
        with httpx.Client(transport=httpx.HTTPTransport(verify=verify, retries=10)) as client:  # until nginx listens
            assert client.get(f"{address}/canvas/healthz").json()["status"] == "ok"
        yield Proxied(studio, f"{address}/canvas", verify)


@pytest.fixture
def browser() -> Iterator[Browser]:
    with open_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxied]:
    with proxied(tmp_path_factory.mktemp("nginx")) as proxied_server:
        yield proxied_server


@pytest.fixture(scope="module")
def login_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxied]:
    with proxied(tmp_path_factory.mktemp("login"), auth=("ann", "secret")) as proxied_server:
        yield proxied_server


@pytest.fixture
def image_file(tmp_path: Path) -> Path:
    Image.new("RGB", (256, 256), "#4477bb").save(tmp_path / "scene.png")
    return tmp_path / "scene.png"


@contextmanager
def open_page(browser: Browser, url: str) -> Iterator[Page]:
    """The page in a browser that accepts the certificate; wrong paths and origins fail the test."""
    failed: list[str] = []
    with browser.new_context(ignore_https_errors=True) as context:
        context.set_default_timeout(40_000)
        page = context.new_page()
        page.on("response", lambda response: failed.append(response.url) if response.status in WRONG_ADDRESS else None)
        page.goto(url)
        yield page
    assert [failed_url for failed_url in failed if not failed_url.endswith("/favicon.ico")] == []


def generate(page: Page, prompt: str) -> None:
    page.get_by_label("Prompt", exact=True).fill(prompt)
    page.get_by_role("button", name="Generate", exact=True).click()
    expect(page.locator(".result-images .result-details .prompt")).to_have_text(prompt, timeout=160_000)
    image = page.locator(".result-images .zoom img").first
    expect(image).to_have_js_property("complete", True)
    assert image.evaluate("image => image.naturalWidth") == 256


def test_page_events_and_uploads(server: Proxied, browser: Browser, image_file: Path) -> None:
    with open_page(browser, f"{server.url}/") as page:
        wait_until_loaded(page)
        generate(page, "a fox in the snow, 3d")
        page.get_by_role("tab", name="Edit").click()
        expect(page.locator("#edit-image canvas").first).to_be_visible()
        page.locator("#edit-image input[type=file]").first.set_input_files(image_file)
        expect(page.get_by_text("Upload an image or select")).to_have_count(0)
        page.get_by_role("tab", name="Gallery").click()
        thumbnail = page.locator("img[src*='thumbnails/']").first
        expect(thumbnail).to_have_js_property("complete", True)
        assert thumbnail.evaluate("image => image.naturalWidth") > 0


def test_login(login_server: Proxied, browser: Browser) -> None:
    with open_page(browser, f"{login_server.url}/") as page:
        page.locator("input[type=text], input:not([type])").first.fill("ann")
        page.locator("input[type=password]").fill("secret")
        page.locator("input[type=password]").press("Enter")
        wait_until_loaded(page)
        generate(page, "a red boat")
    with login_server.client() as client:
        assert client.get("/config").status_code == 401
        statuses = [client.post("/login", data={"username": "ann", "password": "x"}).status_code for _ in range(4)]
        assert statuses == [400, 400, 400, 429]


def test_links_of_the_openai_api_lead_through_the_proxy(login_server: Proxied) -> None:
    key = ApiKeyStore(login_server.studio.database).create("laptop")
    http_client = httpx.Client(verify=login_server.verify)
    with openai.OpenAI(base_url=f"{login_server.url}/v1", api_key=key, http_client=http_client) as client:
        response = client.images.generate(model="starter", prompt="a fox", size="256x256")
        assert response.data
        url = str(response.data[0].url)
        assert url.startswith(f"{login_server.url}/pictures/")
        image = http_client.get(url, headers={"Authorization": f"Bearer {key}"})
        assert image.headers["content-type"] == "image/png"


def test_a_key_is_required_on_every_spelling_of_a_path(login_server: Proxied) -> None:
    for base in (login_server.url, login_server.studio.url):  # type: ignore[attr-defined]
        for prefix in ("", "/canvas", "/canvas/canvas", "/canvas/canvas/canvas"):
            for path in ("/v1/models", "/sdapi/v1/options", "/metrics", "/gradio_api/mcp/"):
                response = httpx.get(f"{base}{prefix}{path}", verify=login_server.verify)
                assert response.status_code == 401, (prefix, path)


@pytest.mark.slow
def test_gradio_client_and_uploads(server: Proxied, image_file: Path) -> None:
    client = Client(f"{server.url}/", verbose=False, ssl_verify=False)
    generated, progress = client.predict("a fox", api_name="/generate")
    assert progress["seed"] is not None
    edited, _ = client.predict("a boat", handle_file(image_file), num_inference_steps=2, api_name="/edit")
    for path in (generated, edited):
        with Image.open(path) as image:
            assert image.size == (256, 256)
    direct = Client(server.studio.url, verbose=False)  # type: ignore[attr-defined]
    assert direct.predict(api_name="/models"), "the command line does not use the proxy"


def test_mcp_server_and_documentation(server: Proxied) -> None:
    async def list_tools(session: object) -> list[str]:
        return [tool.name for tool in (await session.list_tools()).tools]  # type: ignore[attr-defined]

    for url in (server.studio.url, f"{server.studio.url}/canvas"):  # type: ignore[attr-defined]
        with ThreadPoolExecutor(1) as pool:  # the browser's event loop runs in this thread
            assert "generate" in pool.submit(run_in_mcp_session, url, list_tools).result()
    with server.client() as client:
        docs = client.get("/docs").text
        for link in re.findall(r"""(?:href=|src=|url: ?)["']([^"']+)["']""", docs):
            assert link.startswith("/canvas/"), link
            assert client.get(link.removeprefix("/canvas")).status_code == 200, link


def test_the_cookie_of_a_visitor_is_secure(tmp_path: Path) -> None:
    with proxied(tmp_path, public=True) as server, server.client() as client:
        cookie = client.get("/").headers["set-cookie"]
        assert "magic_canvas_visitor=" in cookie
        assert "Secure" in cookie
        config = client.get("/config").json()
        assert config["root"] == server.url


def test_images_are_listed_with_links_of_the_proxy(server: Proxied) -> None:
    [image] = server.studio.generate(GenerationRequest("a boat", num_inference_steps=1))
    with server.client() as client:
        for folder in ("pictures", "thumbnails", "downloads"):
            assert client.get(f"/{folder}/{image.filename}").status_code == 200
        assert client.get("/export.zip").headers["content-type"] == "application/zip"


def test_middleware_sees_paths_without_the_root_path() -> None:
    seen: list[str] = []

    class Recorder:
        def __init__(self, app: Starlette) -> None:
            self._app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            seen.append(scope["path"])
            await self._app(scope, receive, send)

    def endpoint(request: Request) -> PlainTextResponse:
        return PlainTextResponse(str(request.url_for("a")))

    middleware = [Middleware(StripRootPathMiddleware), Middleware(Recorder), Middleware(RestoreRootPathMiddleware)]
    routes = [Route("/a", endpoint, name="a"), Mount("/m", routes=[Route("/b", endpoint)])]
    app = Starlette(routes=routes, middleware=middleware)
    client = TestClient(app, root_path="/canvas")
    for path in ("/a", "/m/b"):
        for prefix in ("", "/canvas", "/canvas/canvas"):
            response = client.get(prefix + path)
            assert response.text == "http://testserver/canvas/a", prefix + path
            assert seen.pop() == path
    assert client.get("/canvasa").status_code == 404
    assert client.get("/canvas").status_code == 404
    assert seen.pop() == "/"


def test_the_start_of_the_app_passes_under_a_root_path() -> None:
    seen: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope)

    call(StripRootPathMiddleware(RestoreRootPathMiddleware(app)), {"type": "lifespan", "root_path": "/canvas"})
    assert seen == [{"type": "lifespan", "root_path": "/canvas"}]
