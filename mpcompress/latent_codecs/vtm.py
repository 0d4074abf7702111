"""Features as pictures through VTM: the documented classes, on top of mpcompress.picture. numpy only.

      org_feat ─► truncate, quantise ─► pack ─► EncoderApp ─► strings["vtm"], pstate
      h_hat    ◄─ dequantise ◄─ unpack ◄─ PyAV or DecoderApp ◄─┘

Truncation bounds, depths and packings are those of "Feature Coding in the Era of Large Models" (arXiv 2412.04307).
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mpcompress.errors import CorruptBitstreamError, InvalidInputError
from mpcompress.picture.cancel import CancelToken
from mpcompress.picture.coding import PictureJob, Progress
from mpcompress.picture.decode import PictureDecoder
from mpcompress.picture.features import decode_features, encode_features
from mpcompress.picture.packing import packing
from mpcompress.picture.quantize import QUANTIZERS, Bounds
from mpcompress.picture.state import PictureState
from mpcompress.picture.vtm import VtmEngine
from mpcompress.picture.vtm_tools import VtmTools

__all__ = ["VtmCodec", "VtmFeatureCodec"]

_DTYPES = ("float16", "float32", "float64")


class VtmCodec:
    """Runs EncoderApp and DecoderApp on files.

    Args:
        repo_dir: folder with bin/ and cfg/ of VTM; empty or None: where VTM_HOME points. Looked into when needed, so
            that decoding works without an encoder.
    """

    def __init__(self, repo_dir: str | os.PathLike[str] | None) -> None:
        self.tools = VtmTools.find(repo_dir)

    def compress(
        self,
        raw_path: str | os.PathLike[str],
        bin_path: str | os.PathLike[str],
        width: int,
        height: int,
        qp: int,
        bitdepth: int = 8,
        chroma_format: str = "400",
        *,
        cancel: CancelToken | None = None,
    ) -> str:
        """Encodes one raw frame; `bin_path` appears when it is complete.

        Args:
            raw_path: planar samples, 1 byte each at depth 8, else 2, little-endian; exactly one frame.
            bin_path: bitstream to write.
            width: luma samples.
            height: luma samples.
            qp: -6 * (bitdepth - 8) to 63.
            bitdepth: of a sample, 8 to 12; to 16 with a VTM built for it (docs/vtm.md).
            chroma_format: "400", "420", "422" or "444".
            cancel: gives up when set.

        Returns:
            The end of what the encoder printed.

        Raises:
            InvalidInputError: the file does not hold exactly one frame.
            CodecUnavailableError: there is no VTM that can be used.
            CodecCrashedError: it failed or hung.
            CodingCancelledError: `cancel` was set.
        """
        raw, target = Path(raw_path).read_bytes(), Path(bin_path)
        stream, ended = self.tools.encode(
            raw, width=width, height=height, qp=qp, bit_depth=bitdepth, chroma_format=chroma_format, cancel=cancel
        )
        _write(target, stream)
        return ended.output

    def decompress(
        self,
        bin_path: str | os.PathLike[str],
        rec_path: str | os.PathLike[str],
        bit_depth: int = 8,
        *,
        cancel: CancelToken | None = None,
    ) -> str:
        """Decodes a bitstream to raw samples, laid out as in `compress`; `rec_path` appears when it is complete.

        Returns:
            The end of what the decoder printed.

        Raises:
            CorruptBitstreamError: the decoder refuses it.
            CodecUnavailableError: there is no VTM that can be used.
            CodecCrashedError: it failed or hung.
            CodingCancelledError: `cancel` was set.
        """
        raw, ended = self.tools.decode(Path(bin_path).read_bytes(), bit_depth=bit_depth, cancel=cancel)
        _write(Path(rec_path), raw)
        return ended.output


class VtmFeatureCodec:
    """Compresses features by truncation, quantisation, packing into a picture, and VTM.

    Args:
        cfg: a dictionary or an object with attributes:

            - vtm_path (str): folder of VTM; empty: where VTM_HOME points.
            - trun_flag (bool): clip to the bounds; else the range of each tensor is measured.
            - trun_low, trun_high: bounds, a number or one per layer.
            - bit_depth (int): of a sample, 8 to 12; to 16 with a VTM built for it (docs/vtm.md).
            - model_type (str): "dinov2", "llama3" or "sd3", or the name of a packing of your own
              (`mpcompress.picture.packing.register_packing`).
            - speed (str), strips (int), parallel (int): optional, as in `VtmEngine` and `plan_strips`.

    Raises:
        InvalidInputError: an unknown model_type or quant_type, bad bounds, a bit depth VTM does not take.
    """

    def __init__(self, cfg: Any) -> None:
        self.cfg = cfg
        self._bit_depth = int(_setting(cfg, "bit_depth", 10))
        self._layout = packing(str(_setting(cfg, "model_type", "")), field="model_type")
        self._truncate = bool(_setting(cfg, "trun_flag", True))
        low, high = _setting(cfg, "trun_low", None), _setting(cfg, "trun_high", None)
        if self._truncate and (low is None or high is None):
            raise InvalidInputError("trun_flag needs trun_low and trun_high", field="trun_low")
        self._bounds = None if low is None or high is None else Bounds.of(low, high)
        quantizer = _setting(cfg, "quant_type", "uniform")
        if quantizer not in QUANTIZERS:
            raise InvalidInputError(f"unknown quant_type {quantizer!r}; known: {', '.join(QUANTIZERS)}")
        self._engine = VtmEngine(_setting(cfg, "vtm_path", None))
        self._decoder = PictureDecoder(self._engine.tools)
        self._speed = str(_setting(cfg, "speed", ""))
        self._strips = int(_setting(cfg, "strips", 1))
        self._parallel = int(_setting(cfg, "parallel", 0))
        lowest, _ = self._engine.qp_range(self._bit_depth)
        self._engine.check(bit_depth=self._bit_depth, qp=max(lowest, 0), speed=self._speed or VtmEngine.default_speed)

    def compress(
        self,
        org_feat: ArrayLike,
        qp: int,
        *,
        cancel: CancelToken | None = None,
        progress: Progress | None = None,
    ) -> dict[str, Any]:
        """Compresses features.

        Args:
            org_feat: (N_crop, N_layer, H*W+1, C), or (N, C, H, W) for "sd3"; any float dtype, finite.
            qp: VTM's quantisation parameter, -6 * (bit_depth - 8) to 63.
            cancel: gives up when set, leaving no process and no file.
            progress: called with (strips done, strips in all).

        Returns:
            "strings": {"vtm": bytes}, the strips one after the other, and "pstate": all that decoding needs, portable:
            pack_shape, feat_shape, bit_depth, the bounds that were used, packing, dtype, format, picture_crc32,
            encoder, and strip_heights and strip_bytes when there are several strips. "bin_path" is "": no file is left
            behind.

        Raises:
            NonFiniteError: a NaN or an infinity in the features.
            InvalidInputError: another shape or parameter.
            CodecUnavailableError: there is no VTM that can be used.
            CodecCrashedError: it failed or hung.
            CodingCancelledError: `cancel` was set.
        """
        features = np.asarray(org_feat)
        job = PictureJob(
            bit_depth=self._bit_depth, qp=int(qp), speed=self._speed, strips=self._strips, parallel=self._parallel
        )
        streams, state, _ = encode_features(
            features,
            engine=self._engine,
            decoder=self._decoder,
            layout=self._layout,
            bounds=self._bounds if self._truncate else None,
            per_layer=self._bounds is not None and len(self._bounds.low) > 1,
            job=job,
            cancel=cancel,
            progress=progress,
        )
        pstate = state.to_dict() | {
            "bin_path": "",
            "feat_shape": tuple(features.shape),
            "dtype": features.dtype.name if features.dtype.name in _DTYPES else "float32",
        }
        if len(streams) > 1:
            pstate["strip_bytes"] = [len(stream) for stream in streams]
        return {"strings": {"vtm": b"".join(streams)}, "pstate": pstate}

    def decompress(
        self,
        strings: Mapping[str, bytes],
        pstate: Mapping[str, Any],
        *,
        cancel: CancelToken | None = None,
        **kwargs: Any,
    ) -> dict[str, NDArray[Any]]:
        """Decompresses features; needs no encoder.

        What `pstate` does not say (bounds, packing) is taken from the configuration; its bin_path is never opened.

        Args:
            strings: {"vtm": bytes}.
            pstate: as `compress` gives it, or with only feat_shape.
            cancel: gives up when set.
            **kwargs: unused.

        Returns:
            {"h_hat": features of feat_shape}, in the dtype that was compressed; float32 if pstate does not name it.

        Raises:
            CorruptBitstreamError: bytes or a state that no encoder writes.
            CodecUnavailableError: there is no VTM that can be used.
            CodecCrashedError: it failed or hung.
            CodingCancelledError: `cancel` was set.
        """
        shape = _shape(pstate)
        state = PictureState.read(self._own_state() | {key: pstate[key] for key in pstate if key != "bin_path"}, shape)
        payload = strings.get("vtm")
        if not isinstance(payload, bytes | bytearray | memoryview):
            raise CorruptBitstreamError('strings["vtm"] holds no bytes', field="strings")
        streams = _split(bytes(payload), pstate.get("strip_bytes"))
        h_hat = decode_features(streams, state, shape, decoder=self._decoder, cancel=cancel)
        dtype = str(pstate.get("dtype", "float32"))
        if dtype not in _DTYPES:
            raise CorruptBitstreamError(f"features of {dtype}, not {', '.join(_DTYPES)}", field="pstate.dtype")
        limit = float(np.finfo(dtype).max)
        return {"h_hat": np.clip(h_hat, -limit, limit).astype(dtype)}

    def forward_test(
        self, org_feat: ArrayLike, qp: int, *, cancel: CancelToken | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Compresses and decompresses.

        Returns:
            What `compress` and what `decompress` give, each with "time_s", the seconds it took.
        """
        start = time.perf_counter()
        coded_unit = self.compress(org_feat, qp, cancel=cancel)
        middle = time.perf_counter()
        decoded: dict[str, Any] = self.decompress(**coded_unit, cancel=cancel)
        end = time.perf_counter()
        return coded_unit | {"time_s": middle - start}, decoded | {"time_s": end - middle}

    def _own_state(self) -> dict[str, Any]:
        """What a pstate with nothing but a shape means."""
        state: dict[str, Any] = {"bit_depth": self._bit_depth, "packing": self._layout.name, "format": "vvc"}
        if self._bounds is not None:
            state |= {"trun_low": self._bounds.low, "trun_high": self._bounds.high}
        return state


def _setting(cfg: Any, name: str, default: Any) -> Any:
    """A setting of a dictionary or of an object; None counts as absent."""
    value = cfg.get(name) if isinstance(cfg, Mapping) else getattr(cfg, name, None)
    return default if value is None else value


def _shape(pstate: Mapping[str, Any]) -> tuple[int, ...]:
    try:
        return tuple(int(side) for side in pstate["feat_shape"])
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptBitstreamError("pstate has no feat_shape", field="pstate.feat_shape") from error


def _split(payload: bytes, sizes: Any) -> list[bytes]:
    """Cuts the payload into strips."""
    if sizes is None:
        return [payload]
    if not all(type(size) is int and size > 0 for size in sizes) or sum(sizes) != len(payload):
        raise CorruptBitstreamError(f"strips of {sizes} bytes in {len(payload)}", field="pstate.strip_bytes")
    ends = np.cumsum(sizes).tolist()
    return [payload[end - size : end] for size, end in zip(sizes, ends, strict=True)]


def _write(path: Path, data: bytes) -> None:
    """Writes a file that is either whole or not there."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
