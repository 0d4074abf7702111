"""Rate and error with real coding: strings are written, read again, and measured."""

from __future__ import annotations

import numpy as np

from mpcompress import metrics
from mpcompress.codec import Array, CodingParams, TensorSpec, Unit
from mpcompress.neural.base import NeuralCodec
from mpcompress.training.data import FeatureSet
from mpcompress.training.report import RatePoint

__all__ = ["measure"]

# Of a .mpc file, at most: all but payload, stream sizes and pstate, for ids of usual length; and the pstate.
_HEADER_BYTES = 48
_PSTATE_BYTES = 24


def measure(codec: NeuralCodec, features: FeatureSet, token_res: tuple[int, int] | None, step: int) -> RatePoint:
    """Codes every tensor of `features`."""
    rates, errors = [], []
    for index in range(len(features)):
        item: dict[str, Array] = dict(features.item(index))
        specs = [TensorSpec(name=name, dtype=array.dtype.name, shape=array.shape) for name, array in item.items()]
        params = codec.resolve(specs, CodingParams(token_res=token_res))
        (coded,) = codec.compress([item], params)
        context = {name: array for name, array in item.items() if name != "h"}
        unit = Unit(
            strings=coded.strings, pstate=coded.pstate, specs=(specs[0],), ctx_hash=coded.ctx_hash, context=context
        )
        codec.check_unit(unit)
        (out,) = codec.decompress([unit])
        nbytes = _HEADER_BYTES + _PSTATE_BYTES + sum(len(s) + (1 if len(s) < 128 else 2) for s in coded.strings)
        rates.append(metrics.bpfp(nbytes, item["h"].size))
        errors.append(metrics.nmse(item["h"], out["h_hat"]))
    return RatePoint(
        step=step, bpfp=float(np.mean(rates)), nmse=float(np.mean(errors)), worst_nmse=float(np.max(errors))
    )
