"""What the soak sends, and what must come back: everything is coded once in this process, by the same codecs."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mpcompress import registry
from mpcompress_client import EdgeCodec
from mpcompress_server.codecs import spec_of
from mpcompress_server.settings import load_settings

TESTS = Path(__file__).parents[1]
DATA = TESTS / "data/features_final.npy"
PLUGINS = TESTS / "server"
KLT = "klt-imgfocus-vits14-final"
# Comes and goes with reloads.
EXTRA = "klt-imgfocus-vits14-block6"
# A plug-in of the server's tests that stores elements as they are, in worker processes.
STORE = "store"
# An encoder inside the server, and one that is a process for each item.
PICTURE, EXTERNAL = "soak-x265", "soak-vvenc"
EXACT = "soak-exact"
QPS = (16, 24, 32)
# How many items a stream has at most: an item of `store` takes microseconds, one of `vvenc` half a second.
LONGEST = {KLT: 60, EXTRA: 60, STORE: 60, EXACT: 20, PICTURE: 4, EXTERNAL: 2}
# Codecs whose processes are killed: the client may see that, when it happens to one item too often.
MORTAL = (STORE, EXTERNAL)
_PICTURES = 'options = {model_type = "dinov2", task = "dinov2 cls", trun_low = -20, trun_high = 20, bit_depth = 10'
_CONFIG = f"""
plugins = ["mpc_test_codecs"]
[metrics]
listen = "127.0.0.1:0"
[limits]
max_item_bytes = 16777216
max_inflight_bytes = 134217728
max_unread_answers = 64
[[codecs]]
id = "{KLT}"
[[codecs]]
id = "{STORE}"
family = "test_bytes"
isolation = "process"
instances = 2
"""
_PICTURE_CODECS = f"""
[[codecs]]
id = "{PICTURE}"
family = "x265"
{_PICTURES}, speed = "veryfast"}}
[[codecs]]
id = "{EXTERNAL}"
family = "vvenc"
{_PICTURES}, speed = "faster"}}
"""
_EXACT_CODEC = f"""
[[codecs]]
id = "{EXACT}"
family = "vit_union_exact"
weights = "exact.safetensors"
"""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One item and its result."""

    codec: str
    tensor: np.ndarray
    qp: float | None
    payload: bytes
    decoded: np.ndarray
    rounding: float = 0.0
    """How much of its largest element a decoded tensor may differ by; 0: not in one bit."""


def write_configs(folder: Path) -> dict[str, str]:
    """The server's configurations by what they are; the last is the one to start with. Absent extras are left out."""
    text = _CONFIG
    if all(importlib.util.find_spec(name) for name in ("av", "imageio_ffmpeg")):
        text += _PICTURE_CODECS
    if all(importlib.util.find_spec(name) for name in ("torch", "compressai")):
        _write_exact_codec(folder / "exact.safetensors")
        text += _EXACT_CODEC
    return {
        "with another codec": f'{text}[[codecs]]\nid = "{EXTRA}"\n',
        "with a mistake": f'{text}[[codecs]]\nid = "{EXTRA}"\nfamily = "no such family"\n',
        "as at the start": text,
    }


def _write_exact_codec(path: Path) -> None:
    import torch

    from mpcompress.checkpoints import import_checkpoint

    sys.path.insert(0, str(TESTS / "mpcompress/exact"))
    from exact_settings import small_codec

    checkpoint = path.with_suffix(".pth")
    torch.save({"state_dict": small_codec().state_dict()}, checkpoint)
    imported = import_checkpoint(checkpoint, codec_id=EXACT, token_res=(6, 5), exact=True)
    path.write_bytes(imported.file.to_bytes())
    checkpoint.unlink()


def make_cases(config: Path) -> dict[str, list[Case]]:
    """Cases by codec, for every codec that a configuration names."""
    sys.path.insert(0, str(PLUGINS))
    importlib.import_module("mpc_test_codecs")
    settings = load_settings(config)
    found = {}
    for index, entry in enumerate(settings.codecs or ()):
        if entry.id == STORE:
            found[STORE] = [
                Case(codec=STORE, tensor=tensor, qp=None, payload=tensor.tobytes(), decoded=tensor)
                for tensor in _tensors(STORE)
            ]
            continue
        codec = EdgeCodec(registry.load(spec_of(entry, f"codecs[{index}]")))
        found[entry.id] = [
            _coded(codec, entry.id, tensor, qp)
            for tensor in _tensors(entry.id)
            for qp in (QPS if entry.id != EXACT else (None,))
        ]
    return found


def _coded(codec: EdgeCodec, codec_id: str, tensor: np.ndarray, qp: float | None) -> Case:
    unit = codec.compress(tensor, qp=qp)
    # Its streams and latents are exact; the transform to features depends on the batch, in float32's last bits.
    rounding = 1e-5 if codec_id == EXACT else 0.0
    decoded = codec.decompress(unit)
    return Case(codec=codec_id, tensor=tensor, qp=qp, payload=unit.payload, decoded=decoded, rounding=rounding)


def _tensors(codec_id: str) -> list[np.ndarray]:
    """Inputs of several sizes."""
    features = np.load(DATA if codec_id != EXTRA else DATA.with_name("features_block6.npy"))
    random = np.random.default_rng(1)
    if codec_id in (PICTURE, EXTERNAL):
        return [np.ascontiguousarray(features[0][:rows, :96]) for rows in (33, 65)]
    if codec_id == EXACT:
        return [random.standard_normal((*batch, 31, 64)).astype(np.float32) for batch in ((), (), (3,))]
    if codec_id == STORE:
        return [features[0], *(random.random(shape, np.float32) for shape in ((7,), (64, 1024), (5, 100, 1000)))]
    return [*features, features[:3]]
