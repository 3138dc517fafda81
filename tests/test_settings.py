from __future__ import annotations

from pathlib import Path

import pytest

from canvas.errors import InvalidInput
from canvas.platform import configure_runtime_env
from canvas.settings import Settings


def test_defaults_need_no_environment() -> None:
    settings = Settings.from_environment({})
    assert settings.database_path == Path("ai_images.db")
    assert settings.outputs_dir == Path("outputs")
    assert settings.host == "127.0.0.1"
    assert not settings.public


def test_arguments_override_the_environment() -> None:
    environ = {"CANVAS_PORT": "7000", "CANVAS_MODEL": "tiny", "CANVAS_AUTH": "ada:secret:1"}
    settings = Settings.from_environment(environ, port="7001", host=None)
    assert settings.port == 7001
    assert settings.model == "tiny"
    assert settings.auth == ("ada", "secret:1")


def test_the_constructor_ignores_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANVAS_PORT", "7000")
    assert Settings().port == 7860
    assert Settings.from_environment().port == 7000


def test_settings_are_frozen() -> None:
    settings = Settings(port=7000)
    with pytest.raises(ValueError, match="frozen"):
        settings.port = 7001  # type: ignore[misc]
    assert settings.model_copy(update={"port": 7001}).port == 7001


@pytest.mark.parametrize(
    ("variable", "value", "allowed"),
    [
        ("CANVAS_PORT", "http", "a whole number"),
        ("CANVAS_PORT", "70000", "less than or equal to 65535"),
        ("CANVAS_DTYPE", "float8", "'float32', 'bfloat16' or 'float16'"),
        ("CANVAS_DEVICE", "abacus", "'cpu', 'cuda' or 'mps'"),
        ("CANVAS_SHARE", "maybe", "one of 1, true, yes, on, 0, false, no, off"),
        ("CANVAS_MEMORY_BUDGET", "-1", "greater than or equal to 0"),
        ("CANVAS_WORKERS", "0", "greater than or equal to 1"),
        ("CANVAS_REMOTE", "gpu.local", "a URL such as http://192.168.1.20:7860"),
        ("CANVAS_HOST", "\x07", "text without control characters"),
        ("CANVAS_ROOT_PATH", "https://example.com/canvas", "a path such as /canvas"),
        ("CANVAS_ROOT_PATH", "canvas", "a path such as /canvas"),
        ("CANVAS_ROOT_PATH", "//example.com", "a path such as /canvas"),
        ("CANVAS_TRUSTED_PROXIES", "*", "addresses or networks, such as 127.0.0.1,10.0.0.0/8"),
    ],
)
def test_an_invalid_variable_is_named(variable: str, value: str, allowed: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        Settings.from_environment({variable: value})
    assert str(caught.value) == f"{variable} must be {allowed} (got {value!r})."


def test_an_invalid_argument_is_named() -> None:
    for create in (Settings, Settings.from_environment):
        with pytest.raises(InvalidInput, match=r"^Port must be a whole number \(got 'http'\)"):
            create(port="http")


def test_an_invalid_login_is_not_repeated() -> None:
    with pytest.raises(InvalidInput, match="must be USER:PASSWORD") as caught:
        Settings.from_environment({"CANVAS_AUTH": "secret-without-colon"})
    assert "secret-without-colon" not in str(caught.value)


def test_repr_hides_secrets() -> None:
    secrets = {"api_key": "secret", "provider_token": "secret", "remote_key": "secret"}
    assert "secret" not in repr(Settings(auth=("ada", "secret"), **secrets))


@pytest.mark.parametrize(
    ("old", "new", "field", "value", "expected"),
    [
        ("CANVAS_KEY", "CANVAS_API_KEY", "api_key", "abc", "abc"),
        ("CANVAS_LASTING", "CANVAS_PERSISTENT", "persistent", "no", False),
        ("CANVAS_ELSEWHERE_FOR_VISITORS", "CANVAS_REMOTE_FOR_VISITORS", "remote_for_visitors", "1", True),
    ],
)
def test_old_variables_still_work(old: str, new: str, field: str, value: str, expected: object) -> None:
    assert getattr(Settings.from_environment({old: value}), field) == expected
    assert getattr(Settings.from_environment({new: value}), field) == expected
    both = Settings.from_environment({new: value, old: "0"})
    assert getattr(both, field) == expected


def test_hf_token_is_the_default_of_the_provider_token() -> None:
    environ = {"HF_TOKEN": "hf"}
    assert Settings.from_environment(environ).provider_token == "hf"  # noqa: S105
    environ |= {"CANVAS_PROVIDER_TOKEN": "own"}
    assert Settings.from_environment(environ).provider_token == "own"  # noqa: S105


def test_telemetry_is_off_unless_the_user_enabled_it() -> None:
    environ = {"HF_HUB_DISABLE_TELEMETRY": "0"}
    configure_runtime_env(environ)
    assert environ["HF_HUB_DISABLE_TELEMETRY"] == "0"
    assert environ["GRADIO_ANALYTICS_ENABLED"] == "False"


def test_the_administrator_must_be_a_login_or_a_key() -> None:
    environ = {"CANVAS_ADMIN": "ada", "CANVAS_AUTH": "ada:secret"}
    assert Settings.from_environment(environ).admin == "ada"
    assert Settings.from_environment({"CANVAS_ADMIN": "key-desk"}).admin == "key-desk"
    for invalid in ({"CANVAS_ADMIN": "ada"}, environ | {"CANVAS_ADMIN": "bob"}):
        with pytest.raises(InvalidInput, match="must be the USER of --auth"):
            Settings.from_environment(invalid)


def test_command_line_options() -> None:
    settings = Settings.from_command_line(["--auth", "ada:secret", "--admin", "ada", "--share"])
    assert settings.admin == "ada"
    assert settings.share


def test_options_of_the_network() -> None:
    arguments = ["--host", "[::]", "--public", "--insecure", "--root-path", "/a/b/"]
    settings = Settings.from_command_line(arguments)
    assert (settings.host, settings.public, settings.insecure, settings.root_path) == ("::", True, True, "/a/b")
    assert not Settings.from_command_line([]).insecure
    for empty in ("", "/"):
        assert Settings(root_path=empty).root_path == ""


def test_proxies_are_trusted_only_where_they_are_named_or_ours() -> None:
    assert Settings().proxies == ()
    environ = {"CANVAS_TRUSTED_PROXIES": "10.0.0.7, 192.168.0.0/16,2001:db8::/32"}
    assert Settings.from_environment(environ).proxies == ("10.0.0.7", "192.168.0.0/16", "2001:db8::/32")
    assert Settings(share=True).proxies == ("127.0.0.1", "::1"), "the tunnel runs on this machine"
    on_space = Settings.from_environment({"SPACE_ID": "ann/canvas"})
    assert "10.0.0.0/8" in on_space.proxies
    assert "127.0.0.1" not in on_space.proxies


def test_a_private_space_knows_its_name() -> None:
    """Its owner has switched public mode off."""
    environ = {"SPACE_ID": "ann/canvas", "SPACE_HOST": "Ann-canvas.hf.space", "CANVAS_PUBLIC": "0"}
    settings = Settings.from_environment(environ)
    assert settings.checks_host
    assert settings.trusted_hosts == ("ann-canvas.hf.space",)
    with pytest.raises(InvalidInput, match="--insecure"):
        settings.check_exposure()
    Settings.from_environment(environ | {"CANVAS_INSECURE": "1"}).check_exposure()
