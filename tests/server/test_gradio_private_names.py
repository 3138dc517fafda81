"""Private names of Gradio that `canvas.api` and `canvas.server` use, each in one module.

If one of these tests fails after an update of Gradio, change the module that it names.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from gradio.mcp import GradioMCPServer
from gradio_client import Client
from mcp.server.lowlevel import Server

from canvas.api import gradio_api, mcp
from canvas.server import auth, identity, security, share_link

CANVAS = Path(mcp.__file__).parent.parent
# The only module that may use a name.
OWNERS = {
    r"\.tokens\b|cookie_id": auth,
    r"oauth_info": identity,
    r"CustomCORSMiddleware": security,
    r"gradio\.networking|share_token": share_link,
    r"mcp_server_obj|_get_or_create_client|_execute_tool|_skip_components": mcp,
    r"gradio\.context|blocks\.fns|validate_inputs": gradio_api,
    r"convert_strings_to_filedata|postprocess_output_data|request_handlers|_get_cached_tool_definition": mcp,
}


@pytest.mark.parametrize("pattern", OWNERS)
def test_each_name_is_used_in_one_module(pattern: str) -> None:
    users = {
        path
        for package in ("api", "server")
        for path in (CANVAS / package).glob("*.py")
        if re.search(pattern, path.read_text(encoding="utf-8"))
    }
    assert users == {Path(OWNERS[pattern].__file__)}


def test_names_of_the_app() -> None:
    app = gr.routes.App()
    for name in ("tokens", "cookie_id"):
        assert hasattr(app, name), f"App.{name} is gone: change canvas/server/auth.py"
    login = inspect.getsource(gr.routes)
    for cookie in ('"access-token-{app.cookie_id}"', '"access-token-unsecure-{app.cookie_id}"'):
        assert cookie in login, f"no cookie {cookie}: change canvas/server/auth.py"


def test_name_of_the_cors_middleware() -> None:
    with gr.Blocks() as blocks:
        app = gr.routes.App.create_app(blocks)
    names = [middleware.cls.__name__ for middleware in app.user_middleware]
    assert security.GRADIO_CORS in names, "change canvas/server/security.py"


def test_names_of_the_hugging_face_session() -> None:
    source = inspect.getsource(gr.oauth)
    for name in ('session["oauth_info"]', "userinfo", "expires_at", '"sub"'):
        assert name in source, f"{name} is gone: change canvas/server/identity.py"


def test_names_of_the_tunnel() -> None:
    from gradio import exceptions, networking

    parameters = list(inspect.signature(networking.setup_tunnel).parameters)
    assert parameters == [
        "local_host",
        "local_port",
        "share_token",
        "share_server_address",
        "share_server_tls_certificate",
    ], "setup_tunnel has changed: change canvas/server/share_link.py"
    assert hasattr(networking, "GRADIO_SHARE_SERVER_ADDRESS")
    assert issubclass(exceptions.ChecksumMismatchError, Exception)
    assert gr.Blocks().share_token


def test_names_of_the_mcp_server() -> None:
    expected = {
        "_get_or_create_client": ["self"],
        "_execute_tool_without_progress": ["self", "job"],
        "_execute_tool_with_progress": ["self", "job", "progress_token"],
    }
    for name, parameters in expected.items():
        method = getattr(GradioMCPServer, name, None)
        assert method, f"GradioMCPServer.{name} is gone: change canvas/api/mcp.py"
        assert list(inspect.signature(method).parameters) == parameters, name
    for name in ("convert_strings_to_filedata", "postprocess_output_data"):
        assert hasattr(GradioMCPServer, name), "change canvas/api/mcp.py"
    assert hasattr(Server, "_get_cached_tool_definition"), "change canvas/api/mcp.py"
    assert "_skip_components" in inspect.signature(Client).parameters
    assert "mcp_server_obj" in inspect.getsource(gr.Blocks.launch)


def test_names_of_blocks() -> None:
    with gr.Blocks() as blocks:
        button = gr.Button()
        button.click(print, api_visibility="private")
        config: Any = gr.context.get_blocks_context()
        assert config.root_block is blocks, "change canvas/api/gradio_api.py"
        [event] = config.fns.values()
        assert (event.api_visibility, event.api_name) == ("private", "print")
        assert event.inputs == []
    assert list(inspect.signature(gr.Blocks.validate_inputs).parameters) == ["self", "block_fn", "inputs"], (
        "change canvas/api/gradio_api.py"
    )
    source = inspect.getsource(gr.Blocks.preprocess_data)
    assert "self.validate_inputs(block_fn, inputs)" in source, "change canvas/api/gradio_api.py"


def test_the_upload_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    assert gr.utils.get_upload_folder() == str(tmp_path), "change canvas/platform.py"
