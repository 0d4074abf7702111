"""Networks of single samples, run over a batch: every sample's numbers are those of a call of its own.

Math libraries choose their summation order by shape, alignment and strides, and the last bit of a scale or a latent
decides about a symbol. So no product covers two samples. Going layer by layer, not sample by sample, costs nothing in
exactness: the weights of a layer are then in the cache for every sample but the first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

__all__ = ["Run", "each_alone", "pointwise", "run_alone", "single_samples", "together"]

Run = Callable[..., Tensor]
"""(network, tensors (B, ...)) to what the network makes of them: `together` or `each_alone`."""


def together(network: nn.Module, *batches: Tensor) -> Tensor:
    """What `network` makes of a batch."""
    out: Tensor = network(*batches)
    return out


def single_samples(*batches: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Sample after sample of tensors (B, ...), each (1, ...) and in memory of its own.

    Math libraries choose their summation order by alignment and strides: only a copy rounds like the sample alone.
    """
    for parts in zip(*(torch.split(batch, 1) for batch in batches), strict=True):
        yield tuple(part.clone(memory_format=torch.contiguous_format) for part in parts)


def each_alone(network: nn.Module, *batches: Tensor) -> Tensor:
    """What `network` makes of each sample of tensors (B, ...), joined to a batch."""
    return torch.cat(run_alone(network, list(single_samples(*batches))))


def run_alone(network: nn.Module, samples: Sequence[tuple[Tensor, ...]]) -> list[Tensor]:
    """What `network` makes of the tensors (1, ...) of each sample, which it may overwrite."""
    if type(network) is nn.Sequential and not _watched(network) and len(network):
        for layer in network:
            samples = [(x,) for x in run_alone(layer, samples)]
        return [x for (x,) in samples]
    if type(network) is nn.ReLU and not _watched(network):
        return [torch.relu_(x) for (x,) in samples]
    if _is_pointwise(network):
        return [pointwise(network, x) for (x,) in samples]
    return [network(*parts) for parts in samples]


def pointwise(layer: nn.Module, x: Tensor) -> Tensor:
    """A 1 x 1 convolution of one sample (1, C, H, W), as the product that it is.

    On a CPU `conv2d` does the same, but takes another library, which rounds otherwise, when it may use threads.
    """
    assert isinstance(layer, nn.Conv2d)
    assert layer.bias is not None
    rows = torch.addmm(layer.bias[:, None], layer.weight.flatten(1), x.flatten(2)[0])
    return rows.view(1, -1, *x.shape[2:])


def _is_pointwise(layer: nn.Module) -> bool:
    return (
        type(layer) is nn.Conv2d
        and layer.kernel_size == layer.stride == (1, 1)
        and layer.padding == (0, 0)
        and layer.groups == 1
        and layer.bias is not None
        and layer.weight.device.type == "cpu"
        and not _watched(layer)
    )


def _watched(module: nn.Module) -> bool:
    """Whether someone waits for calls of the module itself."""
    return bool(module._forward_hooks or module._forward_pre_hooks)
