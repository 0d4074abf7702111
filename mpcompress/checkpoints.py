"""Existing checkpoints of the documented neural codecs as codec files.

FILE.pth ──► tensors only ──► names, class, sizes ──► documented class ──► its tables, if missing ──► codec file
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mpcompress.errors import CodecFileError
from mpcompress.neural.codec_file import NeuralFile
from mpcompress.neural.maps import CONDITIONS, MapForm
from mpcompress.neural.networks import NETWORKS, Network, convert, load_weights, recognise

__all__ = ["ImportedCheckpoint", "import_checkpoint", "read_state_dict"]

# Where training scripts keep the weights, in the order in which they are looked for.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "ema_state_dict")
_PARALLEL = "module."
_DEPTH = 3


@dataclass(frozen=True, kw_only=True)
class ImportedCheckpoint:
    """A codec file made of a checkpoint, and what was found in it."""

    file: NeuralFile
    class_name: str
    parameters: int
    computed_tables: bool

    def config_entry(self, path: str | Path) -> str:
        """The entry of a server's settings that serves this file."""
        return f'[[codecs]]\nid = "{self.file.id}"\nfamily = "{self.file.family}"\nweights = "{path}"\n'


def import_checkpoint(
    path: str | Path,
    *,
    codec_id: str,
    description: str = "",
    token_res: tuple[int, int] | None = None,
    prefix_tokens: int | None = None,
    condition: str | None = None,
    settings: Mapping[str, Any] | None = None,
    prefix: str = "",
    exact: bool = False,
) -> ImportedCheckpoint:
    """Makes a codec file of a checkpoint; class and sizes follow from its names and shapes.

    Args:
        path: .pth, .pt, .ckpt, .tar (read as tensors and containers only, never as Python objects) or .safetensors.
        codec_id: 1 to 64 characters of [a-z0-9._-].
        description: one sentence for a person.
        token_res: (H, W) that the ViT codec was trained for: what a request without a grid means.
        prefix_tokens: how many the ViT codec is expected to have; another number is an error.
        condition: test conditions that a `FeatureScaleHyperprior` was trained for, a key of `CONDITIONS`: gives packing
            and truncation bounds. Neither this nor `settings`: the codec takes maps.
        settings: model_type, trun_low and trun_high instead of a condition.
        prefix: name of the codec inside a larger model, such as "codec.": other entries are left out.
        exact: convert a ViT codec to fixed-point entropy parameters: its units then decode on every machine.

    Raises:
        CodecFileError: not a checkpoint, holds Python objects, of another class, incomplete, or of other shapes.
    """
    state = read_state_dict(Path(path), prefix=prefix)
    network, sizes = recognise(state)
    module = network.make(sizes)
    computed = load_weights(module, state)
    if prefix_tokens is not None and prefix_tokens != sizes.get("num_prefix_tokens"):
        has = sizes.get("num_prefix_tokens", "no")
        raise CodecFileError(f"the checkpoint has {has} prefix tokens, not {prefix_tokens}", field="prefix_tokens")
    parameters = sum(parameter.numel() for parameter in module.parameters())
    family = network.family
    if exact and not network.converted_from:
        module = convert(module)
        family = next(name for name, made in NETWORKS.items() if made.converted_from == family)
    file = NeuralFile(
        id=codec_id,
        family=family,
        description=description or f"{network.class_name} imported from {Path(path).name}",
        sizes=sizes,
        tensors=numpy_state(module.state_dict()),
        token_res=token_res,
        settings=_settings(network, condition, settings),
        card={"class": network.class_name, "source": Path(path).name},
    )
    return ImportedCheckpoint(
        file=file,
        class_name=network.class_name,
        parameters=parameters,
        computed_tables=computed,
    )


def read_state_dict(path: Path, *, prefix: str = "") -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, without wrappers, DataParallel prefixes, and everything outside `prefix`.

    Raises:
        CodecFileError: no such file, damaged, Python objects in it, or no tensors.
    """
    value = _read(path)
    for _ in range(_DEPTH):
        inner = next((value[key] for key in _WRAPPERS if isinstance(value.get(key), Mapping)), None)
        if inner is None:
            break
        value = inner
    state = {str(name): tensor for name, tensor in value.items() if isinstance(tensor, Tensor)}
    while state and all(name.startswith(_PARALLEL) for name in state):
        state = {name.removeprefix(_PARALLEL): tensor for name, tensor in state.items()}
    if prefix:
        dotted = prefix if prefix.endswith(".") else f"{prefix}."
        state = {name.removeprefix(dotted): tensor for name, tensor in state.items() if name.startswith(dotted)}
    if not state:
        where = f" under {prefix!r}" if prefix else ""
        raise CodecFileError(f"{path.name}: no tensors{where}", field="weights")
    return {name: _plain(name, tensor) for name, tensor in state.items()}


def numpy_state(state: Mapping[str, Tensor]) -> dict[str, np.ndarray[Any, Any]]:
    """A module's state dict as arrays."""
    return {name: tensor.detach().cpu().numpy() for name, tensor in state.items()}


def _read(path: Path) -> Mapping[str, Any]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        value = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CodecFileError(f"{path.name}: {error.strerror or error}", field="weights") from error
    except pickle.UnpicklingError as error:
        found = re.search(r"(?:global|GLOBAL|class) ([\w.]+)", str(error))
        what = f" ({found[1]})" if found else ""
        raise CodecFileError(
            f"{path.name}: refused, it holds Python objects besides tensors{what}, or is no checkpoint at all; save "
            f"the state dict alone: torch.save(model.state_dict(), ...)",
            field="weights",
        ) from error
    except (RuntimeError, ValueError, KeyError, EOFError, SafetensorError, zipfile.BadZipFile) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CodecFileError(f"{path.name}: not a checkpoint: {said}", field="weights") from error
    if not isinstance(value, Mapping):
        raise CodecFileError(f"{path.name}: holds a {type(value).__name__}, not a state dict", field="weights")
    return value


def _plain(name: str, tensor: Tensor) -> Tensor:
    """Half and double precision become float32, and 64-bit integers 32-bit ones; 16-bit ones are exact weights."""
    if tensor.is_sparse or tensor.is_quantized or tensor.is_complex():
        raise CodecFileError(f"{name} is no plain tensor", field="weights")
    if tensor.dtype == torch.int16:
        return tensor
    return tensor.to(torch.float32 if tensor.is_floating_point() else torch.int32)


def _settings(network: Network, condition: str | None, settings: Mapping[str, Any] | None) -> dict[str, Any]:
    if condition is None and not settings:
        return {}
    if network.family != "feature_hyperprior":
        raise CodecFileError(f"{network.class_name} takes no truncation bounds", field="condition")
    if condition is not None and condition not in CONDITIONS:
        raise CodecFileError(f"unknown condition {condition!r}; known: {', '.join(CONDITIONS)}", field="condition")
    found = dict(settings or {}) if condition is None else CONDITIONS[condition].settings
    MapForm.of(found)
    return found
