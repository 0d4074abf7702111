"""What `mpcompress doctor` looks at: each check says what it found and, where something is missing, what to do."""

from __future__ import annotations

import importlib
import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

from mpcompress_client.cli.server import Server
from mpcompress_client.errors import MPCompressError
from mpcompress_client.library import library
from mpcompress_client.local import EdgeCodec, shipped_codecs

State = Literal["ok", "absent", "failed"]

# Extra of this distribution -> the packages that it brings, and what they are for.
_EXTRAS: dict[str, tuple[tuple[str, ...], str]] = {
    "edge": (("numba", "safetensors", "platformdirs"), "coding with calibrated codecs on this device, calibrating"),
    "codecs": (("torch", "compressai"), "the neural codecs on this device, .pt files"),
    "vvc": (("av", "imageio-ffmpeg"), "the picture codecs x265 and vvenc, decoding VTM's streams"),
    "server": (("grpcio-health-checking", "prometheus-client", "pydantic", "structlog"), "running a server"),
    "demo": (("matplotlib",), "plots"),
}
_BASE = ("mpcompress", "numpy", "ml_dtypes", "grpcio", "protobuf", "click", "rich")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        area: "system", "packages", "devices", "engines", "codecs" or "server".
        name: what it is.
        state: "ok"; "absent" when only what needs it is out of reach; "failed" when it should work and does not.
        detail: what was found.
        advice: what to do, or "".
    """

    area: str
    name: str
    state: State
    detail: str
    advice: str = ""


def local_findings() -> Iterator[Finding]:
    """What this machine and installation have."""
    system = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    yield Finding(area="system", name="python", state="ok", detail=f"{system}, {sys.executable}")
    for name in _BASE:
        found = _version(name)
        state: State = "ok" if found else "failed"
        advice = "" if found else "pip install mpcompress"
        yield Finding(area="packages", name=name, state=state, detail=found or "missing", advice=advice)
    for extra, (packages, purpose) in _EXTRAS.items():
        for name in packages:
            found = _version(name)
            yield Finding(
                area="packages",
                name=name,
                state="ok" if found else "absent",
                detail=found or f"not installed: for {purpose}",
                advice="" if found else f"pip install 'mpcompress[{extra}]'",
            )
    yield Finding(area="devices", name="cpu", state="ok", detail=f"{os.cpu_count() or 1} cores")
    yield _gpu()
    yield from _engines()
    yield _coder()


def server_findings(server: Server) -> Iterator[Finding]:
    """What the server says; one that the user has not named may be absent."""
    target = server.target
    try:
        with server.connect() as client:
            limits, codecs = client.limits(), client.codecs()
    except MPCompressError as error:
        unreachable: State = "failed" if server.named else "absent"
        advice = "start one: mpcompress-server serve; or name yours: --target HOST:PORT or $MPCOMPRESS_TARGET"
        yield Finding(area="server", name=target, state=unreachable, detail=_line(error), advice=advice)
        return
    here = _version("mpcompress")
    same = here == limits.server_version
    detail = f"reachable, version {limits.server_version or 'unknown'}, items up to {limits.max_item_bytes >> 20} MiB"
    advice = "" if same else f"this client is of version {here}: use the same release where something fails"
    yield Finding(area="server", name=target, state="ok", detail=detail, advice=advice)
    for info in codecs:
        untrained = "" if info.trained else ", random weights"
        detail = f"{info.family}, {info.arithmetic} arithmetic{untrained}, fingerprint {info.fingerprint.hex()}"
        if not info.available:
            detail = info.unavailable_reason
        yield Finding(area="server", name=info.id, state="ok" if info.available else "absent", detail=detail)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _gpu() -> Finding:
    if not _version("torch"):
        return Finding(area="devices", name="gpu", state="absent", detail="not looked for: only torch uses one")
    try:
        # By name: this package must load, and be checked to load, without torch.
        torch: Any = importlib.import_module("torch")
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        built = torch.version.cuda or "no CUDA"
    except Exception as error:
        # A torch that does not fit its drivers or its companions fails in any way.
        return Finding(
            area="devices",
            name="gpu",
            state="failed",
            detail=f"torch does not load: {_line(error)}",
            advice="install torch, torchvision and compressai in one pip command",
        )
    if names:
        return Finding(area="devices", name="gpu", state="ok", detail=f"{', '.join(names)} (CUDA {built})")
    return Finding(area="devices", name="gpu", state="absent", detail=f"none that torch sees (built for {built})")


def _engines() -> Iterator[Finding]:
    try:
        with library():
            from mpcompress.picture.engine import engine
    except MPCompressError as error:
        yield Finding(area="engines", name="picture engines", state="absent", detail=_line(error))
        return
    for name in ("vtm", "vvenc", "x265"):
        try:
            with library():
                made = engine(name)
                reason = made.available()
                detail = reason or made.banner()
        except (MPCompressError, OSError) as error:
            reason = detail = _line(error)
        advice = ""
        if reason and "pip install" not in reason:
            advice = "set $VTM_HOME; see docs/vtm.md" if name == "vtm" else "pip install 'mpcompress[vvc]'"
        yield Finding(area="engines", name=name, state="absent" if reason else "ok", detail=detail, advice=advice)


def _coder() -> Finding:
    """Whether this device codes: loads the shipped calibrated codecs, which compiles the entropy coder."""
    if not (_version("numba") and _version("safetensors")):
        return Finding(
            area="codecs",
            name="on this device",
            state="absent",
            detail="coding here needs numba and safetensors",
            advice="pip install 'mpcompress[edge]'",
        )
    try:
        ids = [codec_id for codec_id in shipped_codecs() if codec_id.startswith("klt-")]
        for codec_id in ids:
            EdgeCodec.load(codec_id)
    except MPCompressError as error:
        return Finding(area="codecs", name="on this device", state="failed", detail=_line(error))
    return Finding(area="codecs", name="on this device", state="ok", detail=", ".join(ids))
