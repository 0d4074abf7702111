"""Settings: every mistake is one line that names its key."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from mpcompress_server.settings import Settings, SettingsError, load_settings


def test_defaults():
    settings = load_settings(None)
    assert settings.listen == "127.0.0.1:50051"
    assert settings.codecs is None
    assert settings.limits.max_item_bytes == 256 << 20
    assert settings.limits.max_inflight_bytes == 1 << 30


def test_a_file_and_overrides(tmp_path):
    path = tmp_path / "server.toml"
    path.write_text(
        """
        listen = "0.0.0.0:1"
        [limits]
        max_item_bytes = 1000
        [[codecs]]
        id = "mine"
        family = "klt"
        weights = "mine.safetensors"
        isolation = "process"
        [[codecs]]
        id = "shipped"
        family = "klt"
        weights = "package:shipped.safetensors"
        """
    )
    settings = load_settings(path, listen="127.0.0.1:2", grace_s=None)
    assert settings.listen == "127.0.0.1:2"
    assert settings.grace_s == 30.0
    assert settings.limits.max_item_bytes == 1000
    assert [entry.weights for entry in settings.codecs] == [
        str(tmp_path / "mine.safetensors"),
        "package:shipped.safetensors",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lisen = 'x'", "lisen: unknown key"),
        ("[limits]\nmax_item_byte = 1", "limits.max_item_byte: unknown key"),
        ("[limits]\nmax_item_bytes = 0", "limits.max_item_bytes: "),
        ("[limits]\nmax_item_bytes = 'much'", "limits.max_item_bytes: "),
        ("[limits]\nmax_inflight_bytes = 10", "limits: max_inflight_bytes (10) must be at least"),
        ("[limits]\nreservation_timeout_s = nan", "limits.reservation_timeout_s: "),
        ("[limits]\nmax_timeout_s = 1", "limits: default_timeout_s (120.0) is above"),
        ("listen = 'nowhere'", "listen: 'nowhere' is no HOST:PORT"),
        ("listen = 'h:99999'", "listen: "),
        ("[[codecs]]\nid = 'Bad Id'", "codecs[0].id: "),
        ("[[codecs]]\nfamily = 'klt'", "codecs[0].id: "),
        ("[[codecs]]\nid = 'a'\nisolation = 'jail'", "codecs[0].isolation: "),
        ("[[codecs]]\nid = 'a'\nweights = 'b'", "codecs[0]: weights without a family"),
        ("[[codecs]]\nid = 'a'\n[[codecs]]\nid = 'a'", "codecs: codec id 'a' is there twice"),
        ("a = ", "not TOML"),
    ],
)
def test_mistakes(tmp_path, text, message):
    path = tmp_path / "server.toml"
    path.write_text(text)
    with pytest.raises(SettingsError) as caught:
        load_settings(path)
    assert str(caught.value).startswith(f"{path}: {message}")
    assert "\n" not in str(caught.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(SettingsError, match="No such file"):
        load_settings(tmp_path / "none.toml")


def test_settings_do_not_change():
    with pytest.raises(ValidationError):
        Settings().listen = "x:1"
