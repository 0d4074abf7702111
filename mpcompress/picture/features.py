"""Features to bitstreams and back, for the documented class and for the codecs of the service alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpcompress.errors import CorruptBitstreamError
from mpcompress.picture.cancel import CancelToken
from mpcompress.picture.coding import PictureJob, Progress, decode_picture, encode_picture, picture_crc32
from mpcompress.picture.decode import PictureDecoder
from mpcompress.picture.engine import PictureEngine, check_sides
from mpcompress.picture.packing import Packing
from mpcompress.picture.quantize import QUANTIZERS, Bounds, check_finite
from mpcompress.picture.state import PictureState

__all__ = ["decode_features", "encode_features"]

# The wire's state has no field for another.
_UNIFORM = QUANTIZERS["uniform"]


def encode_features(
    features: NDArray[Any],
    *,
    engine: PictureEngine,
    decoder: PictureDecoder,
    layout: Packing,
    bounds: Bounds | None,
    job: PictureJob,
    per_layer: bool = False,
    cancel: CancelToken | None = None,
    progress: Progress | None = None,
) -> tuple[list[bytes], PictureState, NDArray[np.float32]]:
    """Encodes a tensor of any float dtype.

    Args:
        features: a shape that `layout` takes.
        engine: encodes.
        decoder: checks what it wrote.
        layout: the packing.
        bounds: truncation bounds; None measures them.
        job: depth, QP and so on.
        per_layer: measure bounds for each layer.
        cancel: gives up when set.
        progress: told of finished strips.

    Returns:
        One bitstream per strip, the state, and what they decode to, float32, shape of `features`.

    Raises:
        NonFiniteError, InvalidInputError, CodecUnavailableError, CodecCrashedError, CodingCancelledError.
    """
    x = features.reshape(layout.canonical(features.shape))
    check_sides(*layout.picture_shape(layout.canonical(features.shape)))
    # bfloat16 is not among the types that numpy compares and reduces quickly.
    x = x if x.dtype in (np.float64, np.float32) else x.astype(np.float32)
    check_finite(x.reshape(features.shape))
    bounds = bounds or Bounds.measured(x, per_layer=per_layer)
    picture = np.ascontiguousarray(layout.pack(_UNIFORM.quantize(x, bounds, job.bit_depth)))
    coded = encode_picture(engine, picture, job, decoder=decoder, cancel=cancel, progress=progress)
    state = PictureState(
        height=picture.shape[0],
        width=picture.shape[1],
        bit_depth=job.bit_depth,
        packing=layout,
        bounds=bounds,
        format=engine.format,
        heights=coded.heights,
        crc32=picture_crc32(coded.decoded),
        encoder=engine.banner(),
    )
    decoded = _UNIFORM.dequantize(layout.unpack(coded.decoded, layout.canonical(features.shape)), bounds, job.bit_depth)
    return coded.streams, state, decoded.reshape(features.shape)


def decode_features(
    streams: Sequence[bytes],
    state: PictureState,
    shape: tuple[int, ...],
    *,
    decoder: PictureDecoder,
    cancel: CancelToken | None = None,
) -> NDArray[np.float32]:
    """Decodes strips to features, float32, of `shape`, for which `state` was read.

    Raises:
        CorruptBitstreamError, CodecUnavailableError, CodecCrashedError, CodingCancelledError.
    """
    if len(streams) != len(state.heights):
        raise CorruptBitstreamError(f"{len(streams)} bitstreams for {len(state.heights)} strips", field="payload")
    picture = decode_picture(
        streams,
        form=state.format,
        heights=state.heights,
        width=state.width,
        bit_depth=state.bit_depth,
        crc32=state.crc32,
        decoder=decoder,
        cancel=cancel,
    )
    if int(picture.max()) >> state.bit_depth:
        raise CorruptBitstreamError(f"samples of more than {state.bit_depth} bits", field="payload")
    samples = state.packing.unpack(picture, state.packing.canonical(shape))
    return _UNIFORM.dequantize(samples, state.bounds, state.bit_depth).reshape(shape)
