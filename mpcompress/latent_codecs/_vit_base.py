"""What the two ViT codecs share: blocks, latents, coding of batches, the geometry of a unit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mpcompress.errors import CorruptBitstreamError, InvalidInputError
from mpcompress.latent_codecs._alone import Run, each_alone, together
from mpcompress.latent_codecs._checks import (
    check_finite,
    check_mapping,
    check_same,
    check_strings,
    check_tensor,
    positive_ints,
)
from mpcompress.latent_codecs._groups import space_channel_codec, split_groups
from mpcompress.latent_codecs._hyper import HyperCodec
from mpcompress.latent_codecs._module import EntropyCodedModule, coding_arithmetic, full_precision
from mpcompress.layers import conv, crop, deconv, pad_to_even, vit_blocks
from mpcompress.layers.vit import map_to_tokens, tokens_to_map

_DEPTH = 2
"""Transformer blocks before and after the latent."""

_POSITIONS = 4096


@dataclass(frozen=True, kw_only=True)
class VitGeometry:
    """Sizes (H, W) that follow from a token grid."""

    token_res: tuple[int, int]

    @property
    def y(self) -> tuple[int, int]:
        """Of y: half the grid, rounded up."""
        H, W = self.token_res
        return (H + 1) // 2, (W + 1) // 2

    @property
    def z(self) -> tuple[int, int]:
        """Of z: a quarter of y padded to even sides, rounded up."""
        H, W = self.y
        return (H + 3) // 4, (W + 3) // 4

    @property
    def decoded(self) -> tuple[int, int]:
        """Of the map that f_s makes of y: the grid, rounded up to even sides."""
        return 2 * self.y[0], 2 * self.y[1]

    @property
    def together(self) -> int:
        """Samples that are coded together, by at most `_POSITIONS` of y: bounds memory."""
        H, W = self.y
        return max(1, _POSITIONS // (H * W))

    def y_shapes(self, groups: Sequence[int]) -> list[torch.Size]:
        """(C, H, W) of each channel group."""
        return [torch.Size((channels, *self.y)) for channels in groups]

    @classmethod
    def from_pstate(cls, pstate: Any, groups: Sequence[int]) -> VitGeometry:
        """The geometry that every entry of `pstate` agrees with.

        Raises:
            InvalidInputError: Entries are missing or of another kind.
            CorruptBitstreamError: Entries contradict each other or the codec's groups.
        """
        check_mapping(pstate, ("y_shape", "z_shape"), "pstate")
        shapes = pstate["y_shape"]
        if not isinstance(shapes, (tuple, list)) or len(shapes) != len(groups):
            raise InvalidInputError(f"pstate.y_shape must hold {len(groups)} shapes", field="pstate.y_shape")
        y_shapes = [positive_ints(shape, 3, "pstate.y_shape") for shape in shapes]
        if "token_res" in pstate:
            geometry = cls(token_res=grid(pstate["token_res"], "pstate.token_res"))
        else:
            geometry = cls(token_res=(2 * y_shapes[0][1], 2 * y_shapes[0][2]))
        agree = (
            y_shapes == geometry.y_shapes(groups)
            and positive_ints(pstate["z_shape"], 2, "pstate.z_shape") == geometry.z
        )
        if not agree or positive_ints(pstate.get("y_pad", geometry.y), 2, "pstate.y_pad") != geometry.y:
            raise CorruptBitstreamError(
                f"pstate contradicts itself or this codec: a grid of {geometry.token_res} in groups of {list(groups)} "
                f"channels has y of {geometry.y} and z of {geometry.z}",
                field="pstate",
            )
        return geometry


def grid(value: Any, field: str) -> tuple[int, int]:
    """A token grid (H, W).

    Raises:
        InvalidInputError: Not two integers of at least 1.
    """
    height, width = positive_ints(value, 2, field)
    return height, width


class VitCodecBase(EntropyCodedModule):
    """Tokens (B, P + H*W, C) to a latent y by blocks and convolutions, and back; subclasses say how.

    Any batch and any grid. In `compress` every network sees one sample at a time, so that the strings of a batch are
    those of single calls: rounding would turn the last bit of a batched product into another symbol. So it is in
    `decompress` up to y_hat; the synthesis takes the batch.
    """

    max_tokens: ClassVar[int] = 2**18
    """Largest B * H * W that `decompress` makes room for."""

    hyper_lc: HyperCodec

    def __init__(
        self, *, h_dim: int, y_dim: int, z_dim: int, groups: int | Sequence[int], num_prefix_tokens: int
    ) -> None:
        super().__init__()
        if num_prefix_tokens < 0:
            raise InvalidInputError(f"num_prefix_tokens={num_prefix_tokens} is negative", field="num_prefix_tokens")
        self.h_dim, self.y_dim, self.z_dim = h_dim, y_dim, z_dim
        self.groups = split_groups(groups, y_dim)
        self.num_prefix_tokens = num_prefix_tokens
        self.post_reg_tokens = nn.Parameter(torch.empty(num_prefix_tokens, h_dim).normal_(std=0.02))
        self.pre_vit_blocks = vit_blocks(h_dim, _DEPTH)
        self.post_vit_blocks = vit_blocks(h_dim, _DEPTH)
        self.f_a = nn.Sequential(
            conv(h_dim, y_dim, kernel_size=3, stride=1),
            nn.ReLU(inplace=True),
            conv(y_dim, y_dim, kernel_size=5, stride=2),
        )
        self.f_s = nn.Sequential(
            deconv(y_dim, y_dim, kernel_size=5, stride=2),
            nn.ReLU(inplace=True),
            deconv(y_dim, h_dim, kernel_size=3, stride=1),
        )
        self.y_lc = space_channel_codec(self.groups, z_dim)

    def _analysis(self, patches: Tensor, *ctx: Tensor, run: Run = together) -> Tensor:
        """Map (B, C, H, W) of patch tokens to y; `run` applies networks."""
        raise NotImplementedError

    def _side(self, *ctx: Tensor, run: Run = together) -> tuple[Tensor, ...]:
        """What the hyper transforms see of ctx: maps of y's size; `run` applies networks."""
        raise NotImplementedError

    def _synthesis(self, y_hat: Tensor, geometry: VitGeometry, *ctx: Tensor) -> dict[str, Any]:
        """Y_hat to the reconstruction, with ``h_hat`` (B, P + H*W, C) in it."""
        raise NotImplementedError

    def _forward(self, h: Tensor, token_res: Sequence[int], *ctx: Tensor) -> dict[str, Any]:
        geometry = self._check(h, token_res)
        h, *ctx_ = (x.to(self.post_reg_tokens) for x in (h, *ctx))
        y = self._analyse(h, geometry, *ctx_)
        with full_precision(y):
            y = y.to(self.post_reg_tokens)
            side = [pad_to_even(x) for x in self._side(*ctx_)]
            hyper_out = self.hyper_lc(pad_to_even(y), *side)
            y_out = self.y_lc(y, crop(hyper_out["params"], geometry.y))
        out = self._synthesis(y_out["y_hat"], geometry, *ctx_)
        out["likelihoods"] = {"y": y_out["likelihoods"]["y"], "z": hyper_out["likelihoods"]["z"]}
        return out

    @torch.no_grad()
    def _compress(self, h: Tensor, token_res: Sequence[int], *ctx: Tensor) -> dict[str, Any]:
        geometry = self._check(h, token_res)
        check_finite(h, "h")
        y_strings: list[list[bytes]] = [[] for _ in range(2 * len(self.groups))]
        z_strings: list[bytes] = []
        with coding_arithmetic(self.post_reg_tokens):
            for first in range(0, len(h), geometry.together):
                part = slice(first, first + geometry.together)
                samples, *context = (x[part].to(self.post_reg_tokens) for x in (h, *ctx))
                y = self._analyse(samples, geometry, *context, run=each_alone)
                side = [pad_to_even(x) for x in self._side(*context, run=each_alone)]
                hyper_out = self.hyper_lc.compress(pad_to_even(y), *side)
                y_out = self.y_lc.compress(y, crop(hyper_out["params"], geometry.y))
                for row, new in zip(y_strings, y_out["strings"], strict=True):
                    row += new
                z_strings += hyper_out["strings"][0]
        pstate = {
            "y_shape": geometry.y_shapes(self.groups),
            "z_shape": torch.Size(geometry.z),
            "token_res": geometry.token_res,
        }
        return {"strings": {"y": y_strings, "z": [z_strings]}, "pstate": pstate}

    @torch.no_grad()
    def _decompress(self, strings: Any, geometry: VitGeometry, *ctx: Tensor) -> dict[str, Any]:
        """Decode checked strings; `ctx` has been checked against `geometry` too."""
        ctx = tuple(x.to(self.post_reg_tokens) for x in ctx)
        z_strings = strings["z"][0]
        size = geometry.together
        with coding_arithmetic(self.post_reg_tokens):
            y_hats = []
            for first in range(0, len(z_strings), size):
                part = slice(first, first + size)
                side = [pad_to_even(x) for x in self._side(*(x[part] for x in ctx), run=each_alone)]
                hyper_out = self.hyper_lc.decompress([z_strings[part]], geometry.z, *side)
                params = crop(hyper_out["params"], geometry.y)
                y_row = [row[part] for row in strings["y"]]
                y_hats.append(self.y_lc.decompress(y_row, geometry.y_shapes(self.groups), params)["y_hat"])
            return self._synthesis(torch.cat(y_hats), geometry, *ctx)

    def _open(self, strings: Any, pstate: Mapping[str, Any]) -> tuple[int, VitGeometry]:
        """Number of samples and geometry of a unit, nothing of it decoded yet."""
        check_mapping(strings, ("y", "z"), "strings")
        samples = check_strings(strings["z"], 1, "strings.z")
        if check_strings(strings["y"], 2 * len(self.groups), "strings.y") != samples:
            raise CorruptBitstreamError("strings.y and strings.z hold different numbers of samples", field="strings")
        geometry = VitGeometry.from_pstate(pstate, self.groups)
        H, W = geometry.token_res
        if samples * H * W > self.max_tokens:
            raise InvalidInputError(
                f"{samples} samples of {H}x{W} tokens exceed {self.max_tokens} tokens", field="pstate.token_res"
            )
        return samples, geometry

    def _check(self, h: Tensor, token_res: Sequence[int]) -> VitGeometry:
        check_tensor(h, "h", 3)
        H, W = grid(token_res, "token_res")
        P = self.num_prefix_tokens
        check_same(h.shape, (h.shape[0], P + H * W, self.h_dim), "h", f"{P} prefix tokens and a grid of {H}x{W}")
        return VitGeometry(token_res=(H, W))

    def _analyse(self, h: Tensor, geometry: VitGeometry, *ctx: Tensor, run: Run = together) -> Tensor:
        tokens = run(self.pre_vit_blocks, h)[:, self.num_prefix_tokens :]
        return self._analysis(tokens_to_map(tokens, geometry.token_res), *ctx, run=run)

    def _to_h_hat(self, feature_map: Tensor, geometry: VitGeometry) -> Tensor:
        """Post blocks over prefix tokens and a map (B, C, H', W'), then the tokens of the grid."""
        h_hat: Tensor = self.post_vit_blocks(map_to_tokens(feature_map, self.post_reg_tokens))
        H, W = geometry.token_res
        size = (feature_map.shape[-2], feature_map.shape[-1])
        if size == (H, W):
            return h_hat
        prefix, patches = h_hat[:, : self.num_prefix_tokens], h_hat[:, self.num_prefix_tokens :]
        kept = patches.reshape(-1, *size, self.h_dim)[:, :H, :W].flatten(1, 2)
        return torch.cat((prefix, kept), dim=1)
