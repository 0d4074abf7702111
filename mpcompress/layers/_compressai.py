"""The one place that imports CompressAI, and the list of what this package uses of it.

CompressAI imports torchvision, and PyPI's torchvision is built for CUDA: beside a CPU build of torch its operator
library does not load, and its Python part then fails on ``torchvision::nms``, an operator it registers a shape
function for. Declaring the schemas of the operators (no kernels: nothing here calls them) lets both imports pass. A
torchvision that imports by itself is left alone.

The types of what is exported here are in ``_compressai.pyi``: CompressAI itself carries no usable annotations.
"""

from __future__ import annotations

import importlib

import torch

_OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


def _import_torchvision() -> torch.library.Library | None:
    """Import torchvision; returns the library that holds declared operators, to be kept alive, or None."""
    try:
        importlib.import_module("torchvision")
    except ImportError:
        return None  # CompressAI's own import names what is missing.
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    else:
        return None
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _OPERATORS:
        library.define(schema)
    importlib.import_module("torchvision")
    return library


_torchvision_operators = _import_torchvision()

from compressai.entropy_models import EntropyBottleneck, EntropyModel, GaussianConditional  # noqa: E402
from compressai.latent_codecs import (  # noqa: E402
    ChannelGroupsLatentCodec,
    CheckerboardLatentCodec,
    GaussianConditionalLatentCodec,
    HyperLatentCodec,
    HyperpriorLatentCodec,
    LatentCodec,
)
from compressai.layers import CheckerboardMaskedConv2d, sequential_channel_ramp  # noqa: E402
from compressai.models import ScaleHyperprior  # noqa: E402
from compressai.models.base import get_scale_table  # noqa: E402
from compressai.models.utils import conv, deconv  # noqa: E402
from compressai.ops import quantize_ste  # noqa: E402

__all__ = [
    "ChannelGroupsLatentCodec",
    "CheckerboardLatentCodec",
    "CheckerboardMaskedConv2d",
    "EntropyBottleneck",
    "EntropyModel",
    "GaussianConditional",
    "GaussianConditionalLatentCodec",
    "HyperLatentCodec",
    "HyperpriorLatentCodec",
    "LatentCodec",
    "ScaleHyperprior",
    "conv",
    "deconv",
    "get_scale_table",
    "quantize_ste",
    "sequential_channel_ramp",
]
