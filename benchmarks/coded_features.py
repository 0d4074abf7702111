"""What the rate benchmarks share: coding a tensor to a complete unit, and what a decoded tensor is still good for."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks import scalar_anchors
from demo.run_demo import overlap
from demo.split_model import CloudHalf, CloudResult
from mpcompress.codec import CodingParams, FeatureCodec, TensorSpec, Unit
from mpcompress.metrics import cosine, nmse
from mpcompress.picture import decode
from mpcompress_proto.coded_unit import CodedUnit
from mpcompress_proto.v1 import compression_pb2 as pb

Features = npt.NDArray[Any]
#: Codes one tensor: bytes, decoded, CPU seconds to encode and to decode.
Coder = Callable[[Features], tuple[int, Features, float, float]]

#: Truncation bound of the picture codecs at each tap: what they lose there is far below what they are compared at.
BOUNDS = {"final": 20.0, "block6": 2.0}
_WIRE_DTYPES = {
    "float16": pb.DATA_TYPE_FLOAT16,
    "float32": pb.DATA_TYPE_FLOAT32,
    "bfloat16": pb.DATA_TYPE_BFLOAT16,
}


@dataclass(frozen=True, kw_only=True)
class Trip:
    """A tensor there and back."""

    h_hat: Features
    mpc_bytes: int
    """Of the complete .mpc file."""
    encode_cpu_s: float
    """Of this process and its children."""
    decode_cpu_s: float
    encoder: str


class Answers:
    """What the second half of the model makes of features: asked for once per original tensor.

    Args:
        tap: where the model is cut.
        cache: directory of the cut model.
    """

    def __init__(self, tap: str, cache: Path) -> None:
        self._half = CloudHalf(tap, cache=cache)
        self._known: dict[str, CloudResult] = {}

    def quality(self, key: str, h: Features, h_hat: Features) -> dict[str, float]:
        """NMSE, cosines of the CLS token and (mean) of the patch tokens at the tap, of the final CLS, saliency IoU."""
        truth = self._known.get(key)
        if truth is None:
            truth = self._known[key] = self._half(h.astype(np.float32))
        answer = self._half(np.nan_to_num(h_hat.astype(np.float32)))
        return {
            "nmse": nmse(h, h_hat),
            "cls_cosine": cosine(h[:1], h_hat[:1]),
            "patch_cosine": mean_token_cosine(h[1:], h_hat[1:]),
            "final_cls_cosine": cosine(truth.cls, answer.cls),
            "saliency_iou": overlap(truth.saliency, answer.saliency),
        }


def mean_token_cosine(x: Features, x_hat: Features) -> float:
    """Mean over tokens (L, C) of the cosine between a token and its decoded self."""
    a, b = x.astype(np.float64), x_hat.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(np.mean((a * b).sum(1) / np.maximum(norms, 1e-30)))


def picture_family(tap: str, speed: str) -> tuple[tuple[str, Any], ...]:
    """Family parameters of a picture codec at a tap: one strip, so that the figures are those of one process."""
    bound = BOUNDS[tap]
    return (("speed", speed), ("strips", 1), ("trun_high", (bound,)), ("trun_low", (-bound,)))


def round_trip(codec: FeatureCodec, h: Features, params: CodingParams) -> Trip:
    """Code `h` through the codec's public API and decode the unit as a stranger would."""
    spec = TensorSpec(name="h", dtype=h.dtype.name, shape=h.shape)
    resolved = codec.resolve([spec], params)
    begin = cpu_s()
    (coded,) = codec.compress([{"h": h}], resolved)
    middle = cpu_s()
    unit = Unit(strings=coded.strings, pstate=coded.pstate, specs=(spec,))
    decode.OWN_STREAMS.forget()
    before = cpu_s()
    h_hat = codec.decompress([unit])[0]["h_hat"]
    end = cpu_s()
    built = CodedUnit.build(
        codec_id=codec.id,
        fingerprint=codec.fingerprint,
        bitstream_version=codec.bitstream_version,
        arithmetic=pb.ARITHMETIC_EXACT,
        tensors=[pb.TensorSpec(name="h", dtype=_WIRE_DTYPES[spec.dtype], shape=h.shape)],
        kind=codec.pstate_kind,
        pstate=coded.pstate,
        strings=coded.strings,
    )
    return Trip(
        h_hat=h_hat,
        mpc_bytes=built.nbytes,
        encode_cpu_s=middle - begin,
        decode_cpu_s=end - before,
        encoder=coded.pstate.get("encoder", codec.id),
    )


def trip_coder(codec: FeatureCodec, params: CodingParams) -> Coder:
    """The codec with these parameters."""

    def code(h: Features) -> tuple[int, Features, float, float]:
        trip = round_trip(codec, h, params)
        return trip.mpc_bytes, trip.h_hat, trip.encode_cpu_s, trip.decode_cpu_s

    return code


def fp16_coder(h: Features) -> tuple[int, Features, float, float]:
    """float16 through zstd."""
    begin = cpu_s()
    nbytes, halves = scalar_anchors.fp16(h)
    return nbytes, halves, cpu_s() - begin, 0.0


def cpu_s() -> float:
    """CPU seconds of this process and of its children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def spread(count: int, wanted: int) -> list[int]:
    """`wanted` of `count` indices, evenly spread and both ends among them."""
    return sorted({round(float(at)) for at in np.linspace(0, count - 1, min(count, wanted))})


def figures(value: Any, digits: int = 5) -> Any:
    """The same structure with every float cut to so many significant digits: more than a measurement has."""
    if isinstance(value, dict):
        return {key: figures(entry, digits) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [figures(entry, digits) for entry in value]
    return float(f"{value:.{digits}g}") if isinstance(value, float) else value
