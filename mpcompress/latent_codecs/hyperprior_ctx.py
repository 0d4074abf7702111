"""Hyperprior codecs of a latent that sender and receiver see through a common context map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mpcompress.errors import CorruptBitstreamError, InvalidInputError
from mpcompress.latent_codecs._alone import single_samples
from mpcompress.latent_codecs._checks import (
    check_finite,
    check_mapping,
    check_strings,
    check_tensor,
    positive_ints,
    shape_text,
)
from mpcompress.latent_codecs._entropy_models import StreamEntropyBottleneck, use_stream_coder
from mpcompress.latent_codecs._gaussian import GaussianLatentCodec
from mpcompress.latent_codecs._hyper import HyperCodec, SmallContextAnalysis, SmallContextSynthesis
from mpcompress.latent_codecs._module import EntropyCodedModule, coding_arithmetic
from mpcompress.layers._compressai import EntropyBottleneck, HyperpriorLatentCodec, LatentCodec, conv


class HyperLatentCodecWithCtx(HyperCodec):
    """Factorised prior for the hyper latent z of y, both transforms seeing a context map.

    The hyper branch of Balle, Minnen, Singh, Hwang, Johnston 2018 (arXiv 1802.01436), conditioned::

        (y, ctx) ── h_a ── z ── [EB] ── z_hat ── h_s(., ctx) ── params

    Args:
        entropy_bottleneck: Model of z; one of CompressAI's is given this package's coder, in place.
        h_a: ``h_a(y, ctx)`` gives z (B, Z, H, W).
        h_s: ``h_s(z_hat, ctx)`` gives params.
        quantizer: In `forward`, z_hat is z plus uniform noise (``"noise"``), or z rounded with a straight-through
            gradient (``"ste"``).
        **kwargs: Passed to CompressAI's `HyperLatentCodec`.
    """

    max_positions: ClassVar[int] = 2**20
    """Largest B * H * W of z that `decompress` makes room for."""

    def __init__(
        self,
        entropy_bottleneck: EntropyBottleneck,
        h_a: nn.Module,
        h_s: nn.Module,
        quantizer: str = "noise",
        **kwargs: Any,
    ) -> None:
        super().__init__(entropy_bottleneck, h_a, h_s, quantizer, **kwargs)

    def forward(self, y: Tensor, ctx: Tensor) -> dict[str, Any]:  # type: ignore[override]
        """Latents y and ctx (B, C, H, W) to ``likelihoods`` {"z"} and ``params``."""
        _check_batch(y, ctx)
        return super().forward(y, ctx)

    @torch.no_grad()
    def compress(self, y: Tensor, ctx: Tensor) -> dict[str, Any]:  # type: ignore[override]
        """Code z of each sample; a batch gives the strings of single calls.

        Returns:
            ``strings`` [z_strings], ``shape`` (H, W) of z, and ``params`` as the decoder will have them.

        Raises:
            InvalidInputError: Wrong shapes, or a value that is not finite or too large to code.
        """
        _check_batch(y, ctx)
        check_finite(y, "y")
        check_finite(ctx, "ctx")
        with coding_arithmetic(y):
            return super().compress(y, ctx)

    @torch.no_grad()
    def decompress(  # type: ignore[override]
        self, strings: Sequence[Sequence[bytes]], shape: Sequence[int], ctx: Tensor, **kwargs: Any
    ) -> dict[str, Any]:
        """``params`` from [z_strings], the (H, W) of z and the encoder's ctx.

        Raises:
            InvalidInputError: A shape or a nesting that no unit has, or more positions than `max_positions`.
            CorruptBitstreamError: Strings that no encoder writes for this shape.
        """
        samples = check_strings(strings, 1, "strings")
        height, width = positive_ints(shape, 2, "shape")
        check_tensor(ctx, "ctx", 4)
        check_finite(ctx, "ctx")
        if samples != ctx.shape[0]:
            raise InvalidInputError(f"{samples} strings with ctx of shape {shape_text(ctx.shape)}", field="ctx")
        if samples * height * width > self.max_positions:
            raise InvalidInputError(
                f"{samples} latents of {height}x{width} exceed {self.max_positions} positions", field="shape"
            )
        with coding_arithmetic(ctx):
            return super().decompress(strings, (height, width), ctx)


class HyperpriorLatentCodecWithCtx(EntropyCodedModule, HyperpriorLatentCodec):
    """Codes y with the distribution that its hyper branch predicts from z and a context map.

    Balle, Minnen, Singh, Hwang, Johnston 2018 (arXiv 1802.01436), conditioned::

             ┌── hyper(., ctx) ── params ──┐
        y ───┴─────────────────────────── [y] ── y_hat

    Args:
        latent_codec: Codecs ``"hyper"`` and ``"y"``. An absent one is built: for ``"hyper"`` a
            `HyperLatentCodecWithCtx` between small convolutional transforms that halve the grid, for ``"y"`` a Gaussian
            codec whose means and scales are a 1x1 convolution of the 2 * `z_channels` params. CompressAI's entropy
            models inside given codecs get this package's coder, in place.
        y_channels: Channels of y, for the built codecs.
        z_channels: Channels of z, for the built codecs.
        ctx_channels: Channels of ctx, for the built codecs.
        quantizer: ``"noise"`` or ``"ste"``, for the built codecs.
        **kwargs: Passed to CompressAI's `HyperpriorLatentCodec`.
    """

    def __init__(
        self,
        latent_codec: Mapping[str, LatentCodec] | None = None,
        *,
        y_channels: int = 256,
        z_channels: int = 192,
        ctx_channels: int = 256,
        quantizer: str = "noise",
        **kwargs: Any,
    ) -> None:
        codecs: dict[str, LatentCodec] = dict(latent_codec or {})
        if "hyper" not in codecs:
            codecs["hyper"] = HyperLatentCodecWithCtx(
                StreamEntropyBottleneck(z_channels),
                SmallContextAnalysis(y_channels, z_channels, ctx_channels),
                SmallContextSynthesis(z_channels, ctx_channels),
                quantizer,
            )
        if "y" not in codecs:
            parameters = nn.Sequential(conv(2 * z_channels, 2 * y_channels, kernel_size=1, stride=1))
            codecs["y"] = GaussianLatentCodec(parameters, quantizer)
        super().__init__(codecs, **kwargs)
        use_stream_coder(self)

    def __getitem__(self, key: str) -> LatentCodec:
        """The codec ``"y"`` or ``"hyper"``."""
        return super().__getitem__(key)

    def forward(self, y: Tensor, ctx: Tensor) -> dict[str, Any]:
        """Latents y and ctx (B, C, H, W) to ``likelihoods`` {"y", "z"} and ``y_hat``."""
        _check_batch(y, ctx)
        hyper_out = self["hyper"](y, ctx)
        y_out = self["y"](y, hyper_out["params"])
        likelihoods = {"y": y_out["likelihoods"]["y"], "z": hyper_out["likelihoods"]["z"]}
        return {"likelihoods": likelihoods, "y_hat": y_out["y_hat"]}

    @torch.no_grad()
    def compress(self, y: Tensor, ctx: Tensor) -> dict[str, Any]:
        """Code each sample; a batch gives the strings of single calls.

        Returns:
            ``strings`` [y_strings, ..., z_strings], ``shape`` {"y", "hyper"} and ``y_hat`` (B, C, H, W).

        Raises:
            InvalidInputError: Wrong shapes, or a value that is not finite or too large to code.
        """
        _check_batch(y, ctx)
        check_finite(y, "y")
        check_finite(ctx, "ctx")
        strings: list[list[bytes]] = []
        y_hats, shape = [], {}
        for sample, context in single_samples(y, ctx):
            with coding_arithmetic(sample):
                hyper_out = self["hyper"].compress(sample, context)
                y_out = self["y"].compress(sample, hyper_out["params"])
            rows = [*y_out["strings"], *hyper_out["strings"]]
            strings = [[*old, *new] for old, new in zip(strings, rows, strict=True)] if strings else rows
            shape = {"y": y_out["shape"], "hyper": hyper_out["shape"]}
            y_hats.append(y_out["y_hat"])
        return {"strings": strings, "shape": shape, "y_hat": torch.cat(y_hats)}

    @torch.no_grad()
    def decompress(
        self,
        strings: Sequence[Sequence[bytes]],
        shape: Mapping[str, Any],
        ctx: Tensor,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """``y_hat`` (B, C, H, W) from what `compress` gave and the encoder's ctx.

        Raises:
            InvalidInputError: A shape or a nesting that no unit has.
            CorruptBitstreamError: Strings that no encoder writes for these shapes.
        """
        if not isinstance(strings, (tuple, list)) or len(strings) < 2:
            raise InvalidInputError("strings must hold the lists of y, then the list of z", field="strings")
        samples = check_strings(strings, len(strings), "strings")
        check_mapping(shape, ("y", "hyper"), "shape")
        check_tensor(ctx, "ctx", 4)
        if samples != ctx.shape[0]:
            raise InvalidInputError(f"{samples} strings with ctx of shape {shape_text(ctx.shape)}", field="ctx")
        y_shape = _as_tuples(shape["y"])
        y_hats = []
        for b, (context,) in enumerate(single_samples(ctx)):
            *y_strings, z_strings = ([row[b]] for row in strings)
            with coding_arithmetic(context):
                params = self["hyper"].decompress([z_strings], shape["hyper"], context)["params"]
            if any(tuple(part[-2:]) != tuple(params.shape[-2:]) for part in _parts(y_shape)):
                raise CorruptBitstreamError(
                    f"shape.y {y_shape} with params of {shape_text(params.shape)}", field="shape.y"
                )
            with coding_arithmetic(context):
                y_hats.append(self["y"].decompress(y_strings, y_shape, params)["y_hat"])
        return {"y_hat": torch.cat(y_hats)}


def _check_batch(y: Tensor, ctx: Tensor) -> None:
    check_tensor(y, "y", 4)
    check_tensor(ctx, "ctx", 4)
    if y.shape[0] != ctx.shape[0]:
        raise InvalidInputError(
            f"y of shape {shape_text(y.shape)} and ctx of shape {shape_text(ctx.shape)} differ in batch", field="ctx"
        )


def _parts(shape: Any) -> Sequence[tuple[int, ...]]:
    return shape if isinstance(shape, list) else [shape]


def _as_tuples(shape: Any) -> Any:
    """A shape, or a list of shapes of channel groups, with tuples for the lists that a file format made of them."""
    if isinstance(shape, (tuple, list)) and shape and all(isinstance(part, (tuple, list)) for part in shape):
        return [positive_ints(part, len(part), "shape.y") for part in shape]
    return positive_ints(shape, len(shape) if isinstance(shape, (tuple, list)) else 2, "shape.y")
