from __future__ import annotations

from pathlib import Path

import pytest

from canvas.errors import InvalidInput
from canvas.settings import Settings, configure_runtime_env


def test_defaults_need_no_environment() -> None:
    settings = Settings.from_environment({})
    assert settings.database_path == Path("ai_images.db")
    assert settings.outputs_dir == Path("outputs")
    assert settings.host == "127.0.0.1"
    assert not settings.public


def test_environment_and_then_the_command_line() -> None:
    environ = {"CANVAS_PORT": "7000", "CANVAS_MODEL": "tiny", "CANVAS_AUTH": "ada:secret"}
    settings = Settings.from_environment(environ, port="7001", host=None)
    assert settings.port == 7001
    assert settings.model == "tiny"
    assert settings.auth == ("ada", "secret")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("CANVAS_PORT", "http"),
        ("CANVAS_PORT", "70000"),
        ("CANVAS_DTYPE", "float8"),
        ("CANVAS_DEVICE", "abacus"),
        ("CANVAS_SHARE", "maybe"),
        ("CANVAS_MEMORY_BUDGET", "-1"),
    ],
)
def test_a_wrong_variable_is_named(variable: str, value: str) -> None:
    with pytest.raises(InvalidInput, match="(?i)" + variable.removeprefix("CANVAS_")):
        Settings.from_environment({variable: value})


def test_a_wrong_login_is_not_repeated() -> None:
    with pytest.raises(InvalidInput) as caught:
        Settings.from_environment({"CANVAS_AUTH": "secret-without-colon"})
    assert "secret-without-colon" not in str(caught.value)


def test_telemetry_is_off_but_the_user_may_decide() -> None:
    environ = {"HF_HUB_DISABLE_TELEMETRY": "0"}
    configure_runtime_env(environ)
    assert environ["HF_HUB_DISABLE_TELEMETRY"] == "0"
    assert environ["GRADIO_ANALYTICS_ENABLED"] == "False"


def test_the_administrator_is_a_login_or_a_key() -> None:
    environ = {"CANVAS_ADMIN": "ada", "CANVAS_AUTH": "ada:secret"}
    assert Settings.from_environment(environ).admin == "ada"
    assert Settings.from_environment({"CANVAS_ADMIN": "key-desk"}).admin == "key-desk"
    for wrong in ({"CANVAS_ADMIN": "ada"}, environ | {"CANVAS_ADMIN": "bob"}):
        with pytest.raises(InvalidInput, match="allowed is the USER of --auth"):
            Settings.from_environment(wrong)


def test_the_administrator_on_the_command_line() -> None:
    settings = Settings.from_command_line(["--auth", "ada:secret", "--admin", "ada"])
    assert settings.admin == "ada"
