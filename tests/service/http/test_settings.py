"""Settings: read from text, refused by name, and the same in the class, the flags and the docs."""

from pathlib import Path

import pytest

from service.settings import BadSettings, Settings, read_settings, setting_fields, settings_table, unknown_variables

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
    assert unknown_variables(known) == []
    assert unknown_variables({**known, "CLIPWORKS_APIKEYS": ""}) == ["CLIPWORKS_APIKEYS"]
