# What this package uses of CompressAI 1.2.8, with types.
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

class EntropyModel(nn.Module):
    _offset: Tensor
    _quantized_cdf: Tensor
    _cdf_length: Tensor
    def __getstate__(self) -> dict[str, Any]: ...

class EntropyBottleneck(EntropyModel):
    channels: int
    quantiles: nn.Parameter
    def __init__(self, channels: int, *args: Any, **kwargs: Any) -> None: ...
    def _get_medians(self) -> Tensor: ...
    def update(self, force: bool = ..., update_quantiles: bool = ...) -> bool: ...
    def loss(self) -> Tensor: ...
    def compress(self, x: Tensor) -> list[bytes]: ...
    def decompress(self, strings: Sequence[bytes], size: Sequence[int]) -> Tensor: ...
    def __call__(self, x: Tensor, training: bool | None = ...) -> tuple[Tensor, Tensor]: ...

class LowerBound(nn.Module):
    bound: Tensor

class GaussianConditional(EntropyModel):
    scale_table: Tensor
    lower_bound_scale: LowerBound
    def __init__(self, scale_table: Sequence[float] | None, *args: Any, **kwargs: Any) -> None: ...
    def build_indexes(self, scales: Tensor) -> Tensor: ...
    def update_scale_table(self, scale_table: Sequence[float] | Tensor, force: bool = ...) -> bool: ...
    def compress(self, inputs: Tensor, indexes: Tensor, means: Tensor | None = ...) -> list[bytes]: ...
    def decompress(
        self, strings: Sequence[bytes], indexes: Tensor, dtype: Any = ..., means: Tensor | None = ...
    ) -> Tensor: ...
    def __call__(
        self, inputs: Tensor, scales: Tensor, means: Tensor | None = ..., training: bool | None = ...
    ) -> tuple[Tensor, Tensor]: ...

class LatentCodec(nn.Module):
    def compress(self, y: Tensor, *args: Any, **kwargs: Any) -> dict[str, Any]: ...
    def decompress(self, strings: Any, shape: Any, *args: Any, **kwargs: Any) -> dict[str, Any]: ...

class GaussianConditionalLatentCodec(LatentCodec):
    gaussian_conditional: GaussianConditional
    entropy_parameters: nn.Module
    def __init__(
        self,
        scale_table: Sequence[float] | None = ...,
        gaussian_conditional: GaussianConditional | None = ...,
        entropy_parameters: nn.Module | None = ...,
        quantizer: str = ...,
        chunks: tuple[str, ...] = ...,
        **kwargs: Any,
    ) -> None: ...
    def _chunk(self, params: Tensor) -> tuple[Tensor, Tensor]: ...

class HyperLatentCodec(LatentCodec):
    entropy_bottleneck: EntropyBottleneck
    h_a: nn.Module
    h_s: nn.Module
    quantizer: str
    def __init__(
        self, entropy_bottleneck: EntropyBottleneck, h_a: nn.Module, h_s: nn.Module, quantizer: str = ..., **kwargs: Any
    ) -> None: ...

class HyperpriorLatentCodec(LatentCodec):
    latent_codec: Mapping[str, LatentCodec]
    def __init__(self, latent_codec: Mapping[str, LatentCodec], **kwargs: Any) -> None: ...
    def __getitem__(self, key: str) -> LatentCodec: ...

class CheckerboardLatentCodec(LatentCodec):
    anchor_parity: str
    entropy_parameters: nn.Module
    context_prediction: CheckerboardMaskedConv2d
    latent_codec: Mapping[str, LatentCodec]
    def __init__(
        self,
        latent_codec: Mapping[str, LatentCodec],
        entropy_parameters: nn.Module,
        context_prediction: CheckerboardMaskedConv2d,
        anchor_parity: str = ...,
        forward_method: str = ...,
        **kwargs: Any,
    ) -> None: ...
    def merge(self, *args: Tensor) -> Tensor: ...

class ChannelGroupsLatentCodec(LatentCodec):
    groups: list[int]
    groups_acc: list[int]
    channel_context: nn.ModuleDict
    def __init__(
        self,
        latent_codec: Mapping[str, LatentCodec],
        channel_context: Mapping[str, nn.Module],
        *,
        groups: list[int],
        **kwargs: Any,
    ) -> None: ...
    def __getitem__(self, key: str) -> LatentCodec: ...
    def merge_y(self, *args: Tensor) -> Tensor: ...
    def _get_ctx_params(self, k: int, side_params: Tensor, y_hat_: Sequence[Tensor]) -> Tensor: ...

class CheckerboardMaskedConv2d(nn.Conv2d):
    mask: Tensor
    def __init__(self, *args: Any, mask_type: str = ..., **kwargs: Any) -> None: ...

class ScaleHyperprior(nn.Module):
    entropy_bottleneck: EntropyBottleneck
    gaussian_conditional: GaussianConditional
    g_a: nn.Sequential
    g_s: nn.Sequential
    h_a: nn.Sequential
    h_s: nn.Sequential
    N: int
    M: int
    def __init__(self, N: int, M: int, **kwargs: Any) -> None: ...

def conv(in_channels: int, out_channels: int, kernel_size: int = ..., stride: int = ...) -> nn.Conv2d: ...
def deconv(in_channels: int, out_channels: int, kernel_size: int = ..., stride: int = ...) -> nn.ConvTranspose2d: ...
def get_scale_table(min: float = ..., max: float = ..., levels: int = ...) -> Tensor: ...
def quantize_ste(x: Tensor) -> Tensor: ...
def sequential_channel_ramp(
    in_ch: int,
    out_ch: int,
    *,
    min_ch: int = ...,
    num_layers: int = ...,
    interp: str = ...,
    make_layer: Callable[..., nn.Module],
    make_act: Callable[[], nn.Module],
    skip_last_act: bool = ...,
    **layer_kwargs: Any,
) -> nn.Sequential: ...
