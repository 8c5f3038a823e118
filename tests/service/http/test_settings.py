"""Settings: read from text, refused by name, and the same in the class, the flags and the docs."""

from pathlib import Path

import pytest

from service.settings import (
    BadSettings,
    Settings,
    read_settings,
    refuse_open_by_typo,
    setting_fields,
    settings_table,
    unknown_variables,
)

REPOSITORY = Path(__file__).parents[3]


def test_environment_and_overrides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPWORKS_PORT", "9000")
    monkeypatch.setenv("CLIPWORKS_API_KEYS", "first-key-1, second-key")
    monkeypatch.setenv("CLIPWORKS_ACCESS_LOG", "false")
    monkeypatch.setenv("CLIPWORKS_MODEL", "")
    settings = read_settings({"max_items": "7", "image_formats": "jpeg,gif"})
    assert (settings.port, settings.max_items, settings.access_log, settings.model) == (9000, 7, False, None)
    assert [key.get_secret_value() for key in settings.api_keys] == ["first-key-1", "second-key"]
    assert settings.image_formats == ("JPEG", "GIF")
    assert read_settings({"port": 1}).port == 1
    assert "first-key" not in repr(settings)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", "70000"), ("port", "x"), ("model", "../evil"), ("api_keys", "short"), ("device", "tpu"),
        ("cors_origins", "example.com"), ("fetch_allow", "example.com"), ("image_formats", "TIFF"),
        ("max_items", "0"), ("max_request_timeout_s", "1"), ("no_such_setting", "1"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_and_not_shown(name: str, value: str) -> None:
    with pytest.raises(BadSettings) as refused:
        read_settings({name: value})
    assert name.upper() in str(refused.value).upper()
    assert name != "api_keys" or value not in str(refused.value)


def test_each_setting_is_documented() -> None:
    assert {field.name for field in setting_fields()} == set(Settings.model_fields)
    for field in setting_fields():
        assert field.description, field.name
        assert field.flag == "--" + field.name.replace("_", "-")
    assert settings_table() in (REPOSITORY / "docs" / "configuration.md").read_text(encoding="utf-8")


def test_misspelt_variables_are_found() -> None:
    known = {"CLIPWORKS_PORT": "", "CLIPWORKS_URL": "", "PATH": "", "CLIPWORKS_API_KEY": ""}
    assert unknown_variables(known) == {}
    found = unknown_variables({**known, "CLIPWORKS_APIKEYS": "", "CLIPWORKS_MAX_ITEM": "3", "CLIPWORKS_ZZ": ""})
    assert found == {
        "CLIPWORKS_APIKEYS": "CLIPWORKS_API_KEYS",
        "CLIPWORKS_MAX_ITEM": "CLIPWORKS_MAX_ITEMS",
        "CLIPWORKS_ZZ": None,
    }


@pytest.mark.parametrize(
    "variable", ["API_KEY", "APIKEYS", "API_KEYZ", "KEYS", "API_TOKEN", "AUTH_TOKEN", "SECRET", "PASSWORD"]
)
def test_a_misspelt_key_opens_no_server(variable: str) -> None:
    environment = {f"CLIPWORKS_{variable}": "a-secret-key"}
    with pytest.raises(BadSettings, match=rf"CLIPWORKS_{variable} is set.* open to everyone") as refused:
        refuse_open_by_typo(read_settings({}), environment)
    assert "a-secret-key" not in str(refused.value)
    refuse_open_by_typo(read_settings({}), environment | {"CLIPWORKS_API_KEYS": ""})
    refuse_open_by_typo(read_settings({"api_keys": "another-key"}), environment)
    refuse_open_by_typo(read_settings({}), {f"CLIPWORKS_{variable}": "", "CLIPWORKS_MONKEY": "x"})


def test_variables_of_orchestrators_are_no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    injected = {
        "CLIPWORKS_PORT": "tcp://10.96.12.7:8000",
        "CLIPWORKS_SERVICE_HOST": "10.96.12.7",
        "CLIPWORKS_SERVICE_PORT": "8000",
        "CLIPWORKS_SERVICE_PORT_HTTP": "8000",
        "CLIPWORKS_PORT_8000_TCP": "tcp://10.96.12.7:8000",
        "CLIPWORKS_PORT_8000_TCP_ADDR": "10.96.12.7",
        "CLIPWORKS_PORT_8000_TCP_PORT": "8000",
        "CLIPWORKS_PORT_8000_TCP_PROTO": "tcp",
        "CLIPWORKS_GPU_PORT": "tcp://10.96.12.8:8000",
        "CLIPWORKS_GPU_SERVICE_HOST": "10.96.12.8",
    }
    for name, value in injected.items():
        monkeypatch.setenv(name, value)
    assert read_settings({}).port == 8000
    assert read_settings({"port": "9000"}).port == 9000
    assert unknown_variables(injected) == {}
    with pytest.raises(BadSettings, match="PORT"):
        read_settings({"port": "tcp://10.96.12.7:8000"})
