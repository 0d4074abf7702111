"""What every neural codec shares: tables, auxiliary loss, loading of state dicts, arithmetic."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from mpcompress.errors import InvalidInputError
from mpcompress.latent_codecs._entropy_models import TABLE_BUFFERS
from mpcompress.layers._compressai import EntropyBottleneck, EntropyModel, GaussianConditional, get_scale_table

# Older CompressAI: `_matrix0`, `_bias0`, `_factor0`; current: `matrices.0`, `biases.0`, `factors.0`.
_OLD_NAME = re.compile(r"_(matrix|bias|factor)(\d+)$")
_NEW_NAME = {"matrix": "matrices", "bias": "biases", "factor": "factors"}
QUANTIZERS = ("noise", "ste")


class EntropyCodedModule(nn.Module):
    """Base of a codec that holds entropy models: their tables, their auxiliary loss, their state."""

    def update(
        self,
        scale_table: Sequence[float] | Tensor | None = None,
        force: bool = False,
        update_quantiles: bool = False,
    ) -> bool:
        """Compute the integer tables that coding needs; once, after training.

        Args:
            scale_table: Ascending standard deviations; the default is 64 of them from 0.11 to 256, log-spaced.
            force: Replace tables that are there.
            update_quantiles: Search the quantiles of the factorised prior instead of trusting the auxiliary loss.

        Returns:
            True when at least one table was computed.
        """
        table = get_scale_table() if scale_table is None else scale_table
        updated = False
        for module in self.modules():
            if isinstance(module, EntropyBottleneck):
                updated |= module.update(force=force, update_quantiles=update_quantiles)
            elif isinstance(module, GaussianConditional):
                updated |= module.update_scale_table(table, force=force)
        return updated

    def aux_loss(self) -> Tensor:
        """Loss of the quantiles of the factorised priors, for an optimiser of their own (Balle 2018)."""
        losses = [module.loss() for module in self.modules() if isinstance(module, EntropyBottleneck)]
        return torch.stack(losses).sum()

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """`torch.nn.Module.load_state_dict` that also takes tables of any size and the older parameter names."""
        return nn.Module.load_state_dict(self, state_dict, strict=strict, assign=assign)

    def _load_from_state_dict(self, state_dict: MutableMapping[str, Any], prefix: str, *args: Any) -> None:
        # torch calls this on a copy of the dict before it visits the children, also when the codec is nested.
        for name, module in self.named_modules():
            if isinstance(module, EntropyModel):
                _prepare(module, state_dict, f"{prefix}{name}." if name else prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)


def _prepare(module: EntropyModel, state_dict: MutableMapping[str, Any], prefix: str) -> None:
    """Rename a model's older keys, and give its table buffers the sizes of those to come."""
    for key in [key for key in state_dict if key.startswith(prefix)]:
        old = _OLD_NAME.fullmatch(key[len(prefix) :])
        if old:
            state_dict[f"{prefix}{_NEW_NAME[old[1]]}.{old[2]}"] = state_dict.pop(key)
    for buffer_name in (*TABLE_BUFFERS, "scale_table"):
        value, buffer = state_dict.get(prefix + buffer_name), getattr(module, buffer_name, None)
        if isinstance(value, Tensor) and isinstance(buffer, Tensor) and value.shape != buffer.shape:
            setattr(module, buffer_name, torch.empty(value.shape, dtype=buffer.dtype, device=buffer.device))


def full_precision(x: Tensor) -> AbstractContextManager[Any]:
    """Keep autocast out: entropy parameters of lower precision change the likelihoods and, in coding, the strings."""
    return torch.autocast(x.device.type, enabled=False)


class _PlainConvolutions:
    """Holds cuDNN to plain float32 and fixed algorithms from the first that enters to the last that leaves.

    torch has these switches once per process: were each thread to put back what it found, the first to leave would
    change the arithmetic of the others.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._flags = ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                flags = torch.backends.cudnn.flags
                self._flags.enter_context(flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False))
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._flags.close()


_PLAIN_CONVOLUTIONS = _PlainConvolutions()


@contextmanager
def coding_arithmetic(x: Tensor) -> Iterator[None]:
    """Keep arithmetic on the device of `x` plain and the same at every call: anything else would change symbols.

    No autocast, and on a GPU no TF32, which torch allows convolutions unless told otherwise, and no algorithm chosen by
    timing.
    """
    with full_precision(x), _PLAIN_CONVOLUTIONS if x.device.type == "cuda" else nullcontext():
        yield


def check_quantizer(quantizer: str) -> str:
    """``"noise"`` or ``"ste"``.

    Raises:
        InvalidInputError: Anything else.
    """
    if quantizer not in QUANTIZERS:
        raise InvalidInputError(f"quantizer must be one of {QUANTIZERS}, not {quantizer!r}", field="quantizer")
    return quantizer
