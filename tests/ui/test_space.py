"""The program under a Space's conditions: its variables, a home and a folder nobody may write."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import resource
import shutil
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import itsdangerous
import pytest
from playwright.sync_api import Browser, Page, expect

from canvas.cli.deploy_space import ROOT, collect_files
from tests.oidc import Provider
from tests.ui.conftest import PATIENCE

MEMORY = 16 * 2**30  # bytes: what a free Space has
SECRET = "the Space's own"  # noqa: S105 - of this test alone
HOST = "https://ann-canvas.hf.space"
OAUTH = {
    "OAUTH_CLIENT_ID": "canvas",
    "OAUTH_CLIENT_SECRET": SECRET,
    "OAUTH_SCOPES": "openid profile",
}
# Root may write everywhere, unless it gives that up
MEEK = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]


@dataclass
class Space:
    """A running Space: its address, its folder, and where it may keep pictures."""

    address: str
    app: Path
    kept: Path


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What `deploy` sends up, read-only."""
    folder = tmp_path_factory.mktemp("space") / "app"
    for file in collect_files():
        (folder / file.path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / file.path, folder / file.path)
    everything = [folder, *folder.rglob("*")]
    for path in everything:
        path.chmod(0o555)
    yield folder
    for path in everything:
        path.chmod(0o755)


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    person = {"sub": "number of ann", "preferred_username": "ann", "name": "Ann"}
    serving = Provider("canvas", person)
    yield serving
    serving.close()


@pytest.fixture(scope="module", params=["with a bucket", "without"])
def space(
    request: pytest.FixtureRequest,
    app: Path,
    provider: Provider,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Space]:
    place = tmp_path_factory.mktemp("container")
    for name in ("home", "tmp", "data"):
        (place / name).mkdir()
    (place / "home").chmod(0o555)
    lasting = request.param == "with a bucket"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": str(place / "home"),
        "TMPDIR": str(place / "tmp"),
        "SYSTEM": "spaces",
        "SPACE_ID": "ann/canvas",
        "SPACE_HOST": HOST.removeprefix("https://"),
        "SPACE_AUTHOR_NAME": "ann",
        "CANVAS_BUCKET": str(place / "data") if lasting else "/nowhere",
        "CANVAS_PORT": str(port),
        "CANVAS_DTYPE": "float32",
        "PYTHONDONTWRITEBYTECODE": "1",
        **({**OAUTH, "OPENID_PROVIDER_URL": provider.url} if lasting else {}),
    }
    python = os.environ.get("SPACE_PYTHON", sys.executable)
    command = [*(MEEK if os.geteuid() == 0 else []), python, "app.py"]
    with (
        open(place / "log", "wb") as log,
        subprocess.Popen(
            command,
            cwd=app,
            env=environ,
            stdout=log,
            stderr=log,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY)),  # noqa: PLW1509 - this process has no threads that matter
        ) as child,
    ):
        address = f"http://127.0.0.1:{port}"
        try:
            while not answers(address):
                assert child.poll() is None, (place / "log").read_text()
            kept = place / "data" if lasting else place / "tmp" / "magic-canvas"
            yield Space(address, app, kept)
        finally:
            child.terminate()


def answers(address: str) -> bool:
    try:
        return httpx.get(f"{address}/healthz", timeout=30).is_success
    except httpx.ConnectError:
        return False


def visit(browser: Browser, space: Space, account: str = "", session: str = "") -> Page:
    context = browser.new_context()
    context.set_default_timeout(PATIENCE)
    expect.set_options(timeout=PATIENCE)
    if account or session:
        value = session or session_of(account)
        cookie = {"name": "session", "value": value, "url": space.address}
        context.add_cookies([cookie])  # type: ignore[list-item]
    page = context.new_page()
    page.goto(space.address)
    return page


def session_of(account: str) -> str:
    """The cookie that Gradio gives to whoever has signed in with Hugging Face."""
    info = {
        "access_token": "none",
        "expires_at": int(time.time()) + 3600,
        "userinfo": {"sub": f"number of {account}", "preferred_username": account},
    }
    data = base64.b64encode(json.dumps({"oauth_info": info}).encode())
    key = hashlib.sha256(f"{SECRET}-v4".encode()).hexdigest()
    return itsdangerous.TimestampSigner(key).sign(data).decode()


def draw(page: Page, prompt: str) -> None:
    page.get_by_label("Prompt", exact=True).fill(prompt)
    page.get_by_role("button", name="Generate", exact=True).click()
    expect(page.locator(".stage-picture .told .prompt")).to_have_text(prompt)


def test_it_starts_draws_and_keeps_where_it_may(space: Space, browser: Browser) -> None:
    page = visit(browser, space)
    draw(page, "a fox in the snow, 3d")
    assert (space.kept / "ai_images.db").is_file()
    assert len(list(space.kept.glob("outputs/*/*.png"))) == 1
    lasting = space.kept.name == "data"
    notice = page.get_by_text("This Space keeps nothing")
    if lasting:
        expect(notice).to_have_count(0)
    else:
        expect(notice).to_be_visible()
    page.get_by_role("tab", name="Models").click()
    expect(page.locator(".model").nth(1)).to_contain_text("not on this server")
    page.context.close()
    writable = [path for path in space.app.rglob("*") if path.stat().st_mode & stat.S_IWUSR]
    assert writable == [], "nothing was made beside the program"


def test_another_visitor_sees_nothing_of_it(space: Space, browser: Browser) -> None:
    page = visit(browser, space)
    expect(page.locator("#stage")).to_contain_text("What shall it be?")
    page.context.close()


def test_who_signs_in_finds_their_pictures_on_another_machine(
    space: Space, browser: Browser
) -> None:
    if space.kept.name != "data":
        assert httpx.get(f"{space.address}/login/huggingface").status_code == 404
        return
    mine = visit(browser, space, "ann")
    expect(mine.get_by_role("button", name="Sign out ann")).to_be_visible()
    draw(mine, "a red boat")
    elsewhere = visit(browser, space, "ann")
    expect(elsewhere.locator(".stage-picture .told .prompt")).to_have_text("a red boat")
    other = visit(browser, space, "bob")
    expect(other.locator("#stage")).to_contain_text("What shall it be?")
    nobody = visit(browser, space)
    expect(nobody.get_by_role("button", name="Sign in")).to_be_visible()
    expect(nobody.locator("#stage")).to_contain_text("What shall it be?")
    for page in (mine, elsewhere, other, nobody):
        page.context.close()


def signed_in(space: Space) -> str:
    """The session cookie after the whole way to the provider and back."""
    session, address = "", f"{space.address}/login/huggingface"
    while True:
        here = address.replace(HOST, space.address)
        headers = {"Cookie": f"session={session}"} if here.startswith(space.address) else {}
        answer = httpx.get(here, headers=headers, timeout=30)
        session = answer.cookies.get("session") or session
        if not answer.is_redirect:
            assert answer.is_success, answer.text
            return session
        address = str(answer.url.join(answer.headers["location"]))


def test_the_way_to_the_provider_and_back(space: Space, browser: Browser) -> None:
    if space.kept.name != "data":
        return  # no sign-in there
    page = visit(browser, space, session=signed_in(space))
    expect(page.get_by_role("button", name="Sign out ann")).to_be_visible()
    expect(page.locator(".stage-picture .told .prompt")).to_have_text("a red boat")
    page.context.close()


def test_the_cookie_lives_in_the_frame_of_another_site(space: Space) -> None:
    answer = httpx.get(space.address, headers={"X-Forwarded-Proto": "https"})
    [cookie] = [one for one in answer.headers.get_list("set-cookie") if "visitor" in one]
    assert "Secure; SameSite=None; Partitioned" in cookie
