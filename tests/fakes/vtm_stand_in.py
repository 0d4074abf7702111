#!/usr/bin/env python3
"""A stand-in for VTM's EncoderApp and DecoderApp, which we do not ship. It is NOT VTM.

Installed by `install` as bin/EncoderAppStatic and bin/DecoderAppStatic of a folder that looks like VTM's. It takes the
command lines this project builds. Well behaved, it encodes with libvvenc and decodes with FFmpeg, so its streams are
real H.266; `behaviour.json` in the folder makes it misbehave:

    {"encoder": "slow"}    one of MISBEHAVIOURS; "started": a file that receives the pids once it is under way;
                           "go": the file that "waits" waits for
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

MISBEHAVIOURS = {
    "slow": "waits for ever",
    "waits": "waits for a file, then does its work",
    "spins": "burns CPU for ever",
    "crashes": "segfaults",
    "fails": "says why and exits with 1",
    "low_depths": "says what a VTM says that was built for 12 bits, and exits with 1",
    "floods": "writes 8 MB to stdout and stderr, then fails",
    "chatty": "writes 8 MB to stdout and stderr, then does its work",
    "empty": "exits with 0 and writes nothing",
    "garbage": "writes bytes that are no bitstream",
    "wrong_size": "encodes half of the rows",
    "two_frames": "writes its bitstream twice",
    "fills_disk": "writes without end",
    "fills_memory": "allocates without end",
    "ignores_sigterm": "ignores SIGTERM, forks a child that does too, and waits for ever",
}


def install(folder: Path, **behaviour: str) -> Path:
    """Makes `folder` look like VTM's; returns it."""
    (folder / "bin").mkdir(parents=True, exist_ok=True)
    (folder / "cfg").mkdir(exist_ok=True)
    (folder / "cfg/encoder_intra_vtm.cfg").write_text("# stand-in\n", encoding="ascii")
    (folder / "behaviour.json").write_text(json.dumps(behaviour), encoding="ascii")
    for name in ("EncoderAppStatic", "DecoderAppStatic"):
        program = folder / "bin" / name
        program.write_text(f"#!{sys.executable} -I\n{Path(__file__).read_text(encoding='utf-8')}", encoding="utf-8")
        program.chmod(0o755)
    return folder


def misbehave(kind: str, target: str) -> None:
    """Does what MISBEHAVIOURS says, up to where the work would begin."""
    if kind == "slow":
        signal.pause()
    elif kind == "spins":
        while True:
            pass
    elif kind == "crashes":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif kind == "fails":
        sys.exit("the stand-in was told to fail")
    elif kind == "low_depths":
        sys.stderr.write("Model is not configured to support high enough internal accuracies - enable ")
        sys.stderr.write("RExt__HIGH_BIT_DEPTH_SUPPORT to use increased precision internal data types etc...\n")
        sys.exit("High bit depth support must be enabled at compile-time in order to decode this bitstream")
    elif kind in ("floods", "chatty"):
        for _ in range(1000):
            os.write(1, b"o" * 8191 + b"\n")
            os.write(2, b"e" * 8191 + b"\n")
        if kind == "floods":
            sys.exit("the last word")
    elif kind == "empty":
        sys.exit(0)
    elif kind == "garbage":
        Path(target).write_bytes(b"\0\0\1" + bytes(range(256)) * 8)
        sys.exit(0)
    elif kind == "fills_disk":
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        with Path(target).open("wb") as file:
            while True:
                file.write(b"x" * (1 << 20))
    elif kind == "fills_memory":
        hoard = []
        while True:
            hoard.append(bytearray(1 << 26))
    elif kind == "ignores_sigterm":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            time.sleep(1)


def option(short: str) -> str:
    """Value of `-x value` or `--Name=value`."""
    for word, following in zip(sys.argv, [*sys.argv[1:], ""], strict=True):
        if word == short:
            return following
        if word.startswith(f"{short}="):
            return word.partition("=")[2]
    raise SystemExit(f"stand-in: no {short}")


def encode(kind: str) -> None:
    """Encodes with libvvenc."""
    import numpy as np

    from mpcompress.picture.vvenc import VvencEngine

    width, height = int(option("-wdt")), int(option("-hgt"))
    picture = np.fromfile(option("-i"), dtype="<u2", count=width * height).reshape(height, width)
    if kind == "wrong_size":
        picture = picture[: height // 2]
    stream = VvencEngine().encode(
        picture.astype(np.uint16), bit_depth=int(option("--InputBitDepth")), qp=int(option("-q")), speed="faster"
    )
    Path(option("-b")).write_bytes(stream * (2 if kind == "two_frames" else 1))


def decode() -> None:
    """Decodes with FFmpeg."""
    from mpcompress.picture.pyav import decode_frames

    frames = decode_frames("vvc", Path(option("-b")).read_bytes(), 1 << 26)
    Path(option("-o")).write_bytes(b"".join(frame.samples for frame in frames))


def main() -> None:
    """Behaves as `behaviour.json` says."""
    if "--version" in sys.argv:
        sys.stdout.write("VVCSoftware: VTM Encoder Version 0.0 [a stand-in, not VTM]\n")
        sys.exit(1)
    behaviour = json.loads((Path(__file__).resolve().parent.parent / "behaviour.json").read_text(encoding="ascii"))
    encoder = "EncoderApp" in Path(__file__).name
    kind = behaviour.get("encoder" if encoder else "decoder", "")
    pids = [os.getpid()]
    if kind == "ignores_sigterm":
        child = os.fork()
        if not child:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            while True:
                time.sleep(1)
        pids.append(child)
    if "started" in behaviour:
        # Renamed into place, so that whoever waits for it sees it whole.
        started = Path(behaviour["started"])
        started.with_suffix(".tmp").write_text(json.dumps(pids), encoding="ascii")
        started.with_suffix(".tmp").rename(started)
    while kind == "waits" and not Path(behaviour["go"]).exists():
        time.sleep(0.02)
    misbehave(kind, option("-b") if encoder else option("-o"))
    if encoder:
        encode(kind)
    else:
        decode()


if __name__ == "__main__":
    main()
