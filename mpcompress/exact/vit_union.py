"""The ViT codecs with exact entropy parameters: their bitstreams decode alike on every machine.

      h ── float blocks, f_a ── y ── fixed point: symbols, their distributions, y_hat ── f_s, float blocks ── h_hat

The float transforms of an encoder may round as they like: the symbols they lead to are in the stream. Those of a
decoder come after the last symbol. Between them is `ExactNetworks`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from mpcompress.errors import CodecFileError, CodecUnavailableError, CorruptBitstreamError, InvalidInputError
from mpcompress.exact.engines import Engine, choose_engine
from mpcompress.exact.fixed import ACTIVATION_LIMIT, LATENT_BITS
from mpcompress.exact.networks import ExactNetworks
from mpcompress.exact.stream import CHECKSUM_BYTES, LatentReader, LatentWriter, to_fixed
from mpcompress.latent_codecs._alone import each_alone
from mpcompress.latent_codecs._checks import check_finite, check_mapping, check_strings
from mpcompress.latent_codecs._module import EntropyCodedModule, coding_arithmetic
from mpcompress.latent_codecs._vit_base import VitCodecBase, VitGeometry
from mpcompress.layers import pad_to_even

__all__ = ["ExactVitUnion"]


class ExactVitUnion(EntropyCodedModule):
    """`VitUnionLatentCodec` or `VitUnionLatentCodecWithCtx` with integer entropy parameters, one stream per sample.

    Args:
        net: a documented codec; its analysis and synthesis are shared with this one, its entropy models not used.
        exact: the integer networks.
    """

    max_tokens: ClassVar[int] = VitCodecBase.max_tokens
    """Largest B * H * W that `decompress` makes room for."""

    def __init__(self, net: VitCodecBase, exact: ExactNetworks) -> None:
        super().__init__()
        self.h_dim, self.y_dim, self.z_dim = net.h_dim, net.y_dim, net.z_dim
        self.groups, self.num_prefix_tokens = net.groups, net.num_prefix_tokens
        self.ctx_dim: int = exact.ctx_dim
        self.h_a = net.hyper_lc.h_a
        self.net = _transforms(net)
        self.exact = exact
        self.engine: Engine | None = None
        """Evaluates the integer networks; None: the fastest where the codec is."""

    @classmethod
    def blank(cls, net: VitCodecBase) -> ExactVitUnion:
        """A codec of the sizes of `net` whose numbers are still to be loaded."""
        ctx_dim = int(getattr(net, "ctx_dim", 0))
        return cls(net, ExactNetworks(y_dim=net.y_dim, z_dim=net.z_dim, groups=net.groups, ctx_dim=ctx_dim))

    def compress(self, h: Tensor, *ctx: Tensor, token_res: Sequence[int], **kwargs: Any) -> dict[str, Any]:
        """Code a batch; its streams are those of single calls.

        Args:
            h: (B, P + H*W, C), finite.
            *ctx: for a codec with context, (B, ctx_dim, H, W), finite.
            token_res: (H, W).
            **kwargs: accepted and ignored.

        Returns:
            ``strings``, one per sample, and ``pstate`` as of `VitUnionLatentCodec`.

        Raises:
            InvalidInputError: wrong shapes, or values that are not finite or too large to code.
        """
        geometry = self.net._check(h, token_res)
        check_finite(h, "h")
        context = self._context(ctx, len(h), geometry)
        size = geometry.together
        strings: list[bytes] = []
        with torch.no_grad(), coding_arithmetic(h):
            for begin in range(0, len(h), size):
                part = tuple(x[begin : begin + size] for x in context)
                strings += self._encode(h[begin : begin + size], part, geometry)
        pstate = {
            "y_shape": geometry.y_shapes(self.groups),
            "z_shape": torch.Size(geometry.z),
            "token_res": geometry.token_res,
        }
        return {"strings": strings, "pstate": pstate}

    def decompress(
        self, strings: Sequence[bytes], pstate: Mapping[str, Any], *ctx: Tensor, **kwargs: Any
    ) -> dict[str, Any]:
        """Decode what `compress` gave, on any device, with the encoder's ctx.

        Returns:
            ``h_hat`` (B, P + H*W, C); with context also ``h_hat_share`` (B, C, H, W).

        Raises:
            InvalidInputError: strings or pstate of another kind, or more than `max_tokens`.
            CorruptBitstreamError: strings that no encoder of this codec writes, or another ctx.
        """
        samples = check_strings([strings], 1, "strings")
        geometry = VitGeometry.from_pstate(check_mapping(pstate, ("y_shape", "z_shape"), "pstate"), self.groups)
        H, W = geometry.token_res
        if samples * H * W > self.max_tokens:
            raise InvalidInputError(
                f"{samples} samples of {H}x{W} tokens exceed {self.max_tokens} tokens", field="pstate.token_res"
            )
        context = self._context(ctx, samples, geometry)
        size = geometry.together
        device = self.net.post_reg_tokens.device
        with torch.no_grad(), coding_arithmetic(self.net.post_reg_tokens):
            y_hats = []
            for begin in range(0, samples, size):
                part = tuple(x[begin : begin + size] for x in context)
                y_hats.append(self._decode(strings[begin : begin + size], part, geometry))
            y_hat = torch.cat(y_hats).permute(0, 3, 1, 2).to(torch.float32) * 2.0**-LATENT_BITS
            floats = [self._to_float(x).to(device) for x in context]
            return self.net._synthesis(y_hat.contiguous().to(device), geometry, *floats)

    def quantise_ctx(self, ctx: Tensor) -> Tensor:
        """The integers (B, ctx_dim, H, W), int16, that a context counts as: what its hash is made of."""
        scaled = torch.round(ctx.detach().to("cpu", torch.float32) * 2.0 ** int(self.exact.ctx_bits[0]))
        return scaled.clamp(-ACTIVATION_LIMIT, ACTIVATION_LIMIT).to(torch.int16)

    def update(self, *args: Any, **kwargs: Any) -> bool:
        """Check the numbers that were loaded; tables are never computed.

        Returns:
            False.

        Raises:
            CodecFileError: they are not those of an exact codec.
            CodecUnavailableError: `force`: a caller that finds no tables asks for new ones.
        """
        if kwargs.get("force"):
            raise CodecUnavailableError("an exact codec without its tables: convert the checkpoint again")
        self.exact.prove()
        return False

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As of `torch.nn.Module`; the integers must be complete and of their types, whatever `strict` is.

        Raises:
            CodecFileError: they are not, or they are not those of an exact codec.
        """
        for name, buffer in self.exact.state_dict(prefix="exact.").items():
            value = state_dict.get(name)
            if value is None or value.dtype != buffer.dtype:
                said = "is missing" if value is None else f"is {value.dtype}, not {buffer.dtype}"
                raise CodecFileError(f"{name} {said}", field=name)
        outcome = super().load_state_dict(state_dict, strict, assign)
        self.exact.prove()
        return outcome

    def _encode(self, h: Tensor, context: tuple[Tensor, ...], geometry: VitGeometry) -> list[bytes]:
        engine = self._engine()
        y, z = self._analyse(h, context, geometry)
        writer = LatentWriter(self.exact.tables, y.flatten(1, 2))
        symbols = writer.hyper(z, self.exact.medians.cpu().to(torch.int64))
        side = self.exact.side(engine, symbols, geometry.y, _channels_last(context, engine))
        self.exact.code(engine, side, writer)
        return writer.streams()

    def _analyse(self, h: Tensor, context: tuple[Tensor, ...], geometry: VitGeometry) -> tuple[Tensor, Tensor]:
        """A batch to y (B, H, W, C) and z (B, h, w, C) in fixed point."""
        like = self.net.post_reg_tokens
        floats = [self._to_float(x).to(like) for x in context]
        latent = self.net._analyse(h.to(like), geometry, *floats, run=each_alone)
        side = [pad_to_even(x) for x in self.net._side(*floats, run=each_alone)]
        hyper = each_alone(self.h_a, pad_to_even(latent), *side)
        return to_fixed(latent.cpu().permute(0, 2, 3, 1), "y"), to_fixed(hyper.cpu().permute(0, 2, 3, 1), "z")

    def _decode(self, strings: Sequence[bytes], context: tuple[Tensor, ...], geometry: VitGeometry) -> Tensor:
        engine = self._engine()
        short = [number for number, string in enumerate(strings) if len(string) < CHECKSUM_BYTES + 4]
        if short:
            raise CorruptBitstreamError(f"{len(strings[short[0]])} bytes are no stream", field=f"strings[{short[0]}]")
        reader = LatentReader(self.exact.tables, strings)
        symbols = reader.hyper(geometry.z, self.z_dim)
        side = self.exact.side(engine, symbols, geometry.y, _channels_last(context, engine))
        y_hat = self.exact.code(engine, side, reader)
        reader.close()
        return y_hat

    def _context(self, ctx: tuple[Tensor, ...], samples: int, geometry: VitGeometry) -> tuple[Tensor, ...]:
        if len(ctx) != bool(self.ctx_dim):
            raise InvalidInputError(f"{len(ctx)} contexts for a codec of {self.ctx_dim} context channels", field="ctx")
        for x in ctx:
            self.net._check_ctx(x, samples, geometry)  # type: ignore[operator]
            check_finite(x, "ctx")
        return tuple(self.quantise_ctx(x) for x in ctx)

    def _to_float(self, context: Tensor) -> Tensor:
        """What both sides' float transforms see of a context: what its integers say."""
        return context.to(torch.float32) * 2.0 ** -int(self.exact.ctx_bits[0])

    def _engine(self) -> Engine:
        return self.engine or choose_engine(self.net.post_reg_tokens.device)


def _transforms(net: VitCodecBase) -> VitCodecBase:
    """The codec without its entropy models and hyper transforms; modules and parameters are shared, not copied."""
    stripped = copy.copy(net)
    stripped._modules = {name: module for name, module in net._modules.items() if name not in ("y_lc", "hyper_lc")}
    return stripped


def _channels_last(context: tuple[Tensor, ...], engine: Engine) -> Tensor | None:
    """(B, C, H, W) integers to activations (B, H, W, C)."""
    if not context:
        return None
    return context[0].permute(0, 2, 3, 1).contiguous().to(engine.device, engine.dtype)
