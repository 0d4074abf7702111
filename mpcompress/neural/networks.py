"""The documented classes as a table: how each is built, recognised in a state dict, and what of it decoding needs."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mpcompress.errors import CodecFileError, InvalidInputError, MpcompressError
from mpcompress.exact.convert import exact_from
from mpcompress.exact.vit_union import ExactVitUnion
from mpcompress.latent_codecs import (
    FeatureScaleHyperprior,
    HyperLatentCodecWithCtx,
    HyperpriorLatentCodecWithCtx,
    VitUnionLatentCodec,
    VitUnionLatentCodecWithCtx,
)
from mpcompress.latent_codecs._entropy_models import TABLE_BUFFERS, StreamEntropyBottleneck
from mpcompress.latent_codecs._hyper import SmallContextAnalysis, SmallContextSynthesis
from mpcompress.latent_codecs._module import EntropyCodedModule

__all__ = ["NETWORKS", "Network", "convert", "load_weights", "recognise", "untrained"]

StateDict = Mapping[str, Tensor]
Sizes = dict[str, Any]

_MAX_DIM = 1 << 14
# What training and encoding need of an entropy model, and decoding does not; of the quantiles it needs the medians.
_ENTROPY_ENCODER = re.compile(r"(^|\.)((matrices|biases|factors)\.\d+|target|likelihood_lower_bound\.bound)$", re.ASCII)
_QUANTILES = re.compile(r"(^|\.)quantiles$", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Network:
    """One documented class.

    Args:
        family: the codec family that serves it.
        class_name: its documented name.
        sizes: the arguments that give its size, with their documented defaults; None: no default.
        build: makes one of these sizes.
        measure: the sizes that a state dict has.
        signature: keys that, together, only a state dict of this class has.
        encoder_only: prefixes of parameters that decoding does not use.
        converted_from: family of the trained networks that these are made of; empty: these are trained themselves.
    """

    family: str
    class_name: str
    sizes: Mapping[str, Any]
    build: Callable[..., EntropyCodedModule]
    measure: Callable[[StateDict], Sizes]
    signature: tuple[str, ...]
    encoder_only: tuple[str, ...]
    converted_from: str = ""

    def make(self, sizes: Mapping[str, Any]) -> EntropyCodedModule:
        """A network of these sizes, in eval mode, with random weights.

        Raises:
            CodecFileError: a size that is missing, unknown or not possible.
        """
        unknown = sorted(sizes.keys() - self.sizes.keys())
        if unknown:
            known = ", ".join(self.sizes)
            raise CodecFileError(f"{self.class_name} has no size {unknown[0]!r}; known: {known}", field="options")
        values = {**self.sizes, **sizes}
        for name, value in values.items():
            numbers = value if isinstance(value, list | tuple) and name == "groups" else [value]
            least = 0 if name == "num_prefix_tokens" else 1
            if not all(type(number) is int and least <= number <= _MAX_DIM for number in numbers):
                said = "is missing" if value is None else f"is {value!r}, not {least} to {_MAX_DIM}"
                raise CodecFileError(f"{self.class_name}: {name} {said}", field=f"options.{name}")
        try:
            return self.build(**values).eval()
        except MpcompressError as error:
            raise CodecFileError(f"{self.class_name}: {error.message}", field=f"options.{error.field}") from error

    def decoding_parts(self, state: StateDict) -> list[tuple[str, Any]]:
        """Names and arrays of all that decoding depends on, sorted by name: what a fingerprint covers."""
        parts = []
        for name in sorted(state):
            if name.startswith(self.encoder_only) or _ENTROPY_ENCODER.search(name):
                continue
            value = state[name][:, :, 1] if _QUANTILES.search(name) else state[name]
            parts.append((name, value.detach().cpu().numpy()))
        return parts


def _vit_sizes(state: StateDict) -> Sizes:
    groups: list[int] = []
    while (key := f"y_lc.latent_codec.y{len(groups)}.context_prediction.weight") in state:
        groups.append(int(state[key].shape[1]))
    tokens, channels = state["post_reg_tokens"].shape
    return {
        "h_dim": int(channels),
        "y_dim": int(state["f_a.2.weight"].shape[0]),
        "z_dim": int(state["hyper_lc.entropy_bottleneck.quantiles"].shape[0]),
        "groups": groups,
        "num_prefix_tokens": int(tokens),
    }


def _vit_ctx_sizes(state: StateDict) -> Sizes:
    return {**_vit_sizes(state), "ctx_dim": int(state["f_ctx_down.weight"].shape[0])}


def _float_names(state: StateDict) -> StateDict:
    """The state of an exact codec under the names that tell the sizes of the trained one."""
    found = {name.removeprefix("net."): tensor for name, tensor in state.items()}
    found["hyper_lc.entropy_bottleneck.quantiles"] = state["exact.medians"]
    for name in [name for name in state if name.endswith(".spatial.weight")]:
        found[f"y_lc.latent_codec.y{name.split('.')[2]}.context_prediction.weight"] = state[name].transpose(1, 2)
    return found


def _hyperprior_sizes(state: StateDict) -> Sizes:
    return {"N": int(state["g_a.0.weight"].shape[0]), "M": int(state["g_a.6.weight"].shape[0])}


def _latent_sizes(state: StateDict, hyper: str = "") -> Sizes:
    z_channels, joined = state[f"{hyper}h_a.net.0.weight"].shape[:2]
    ctx_channels = int(state[f"{hyper}h_s.fuse.0.weight"].shape[1]) - int(z_channels)
    return {
        "y_channels": int(joined) - ctx_channels,
        "z_channels": int(z_channels),
        "ctx_channels": ctx_channels,
    }


def _hyper_latent(*, y_channels: int, z_channels: int, ctx_channels: int) -> HyperLatentCodecWithCtx:
    """The class around the transforms that `HyperpriorLatentCodecWithCtx` builds by default."""
    return HyperLatentCodecWithCtx(
        StreamEntropyBottleneck(z_channels),
        SmallContextAnalysis(y_channels, z_channels, ctx_channels),
        SmallContextSynthesis(z_channels, ctx_channels),
    )


_VIT = {"h_dim": 384, "y_dim": 256, "z_dim": 192, "groups": 16, "num_prefix_tokens": 1}
_LATENT = {"y_channels": 256, "z_channels": 192, "ctx_channels": 256}
_VIT_ENCODER = ("pre_vit_blocks.", "f_a.", "hyper_lc.h_a.")
_EXACT_ENCODER = ("net.pre_vit_blocks.", "net.f_a.", "h_a.")

NETWORKS: dict[str, Network] = {
    network.family: network
    for network in (
        Network(
            family="vit_union_ctx",
            class_name="VitUnionLatentCodecWithCtx",
            sizes={**_VIT, "ctx_dim": 256},
            build=VitUnionLatentCodecWithCtx,
            measure=_vit_ctx_sizes,
            signature=("post_reg_tokens", "f_ctx_down.weight", "cond_enc.0.weight"),
            encoder_only=(*_VIT_ENCODER, "cond_enc."),
        ),
        Network(
            family="vit_union",
            class_name="VitUnionLatentCodec",
            sizes=_VIT,
            build=VitUnionLatentCodec,
            measure=_vit_sizes,
            signature=("post_reg_tokens", "f_a.0.weight"),
            encoder_only=_VIT_ENCODER,
        ),
        Network(
            family="vit_union_ctx_exact",
            class_name="ExactVitUnion",
            sizes={**_VIT, "ctx_dim": 256},
            build=lambda **sizes: ExactVitUnion.blank(VitUnionLatentCodecWithCtx(**sizes)),
            measure=lambda state: _vit_ctx_sizes(_float_names(state)),
            signature=("net.post_reg_tokens", "exact.freqs", "exact.fusion.down.weight"),
            encoder_only=(*_EXACT_ENCODER, "net.cond_enc.", "net.f_ctx_down."),
            converted_from="vit_union_ctx",
        ),
        Network(
            family="vit_union_exact",
            class_name="ExactVitUnion",
            sizes=_VIT,
            build=lambda **sizes: ExactVitUnion.blank(VitUnionLatentCodec(**sizes)),
            measure=lambda state: _vit_sizes(_float_names(state)),
            signature=("net.post_reg_tokens", "exact.freqs"),
            encoder_only=_EXACT_ENCODER,
            converted_from="vit_union",
        ),
        Network(
            family="feature_hyperprior",
            class_name="FeatureScaleHyperprior",
            sizes={"N": None, "M": None},
            build=FeatureScaleHyperprior,
            measure=_hyperprior_sizes,
            signature=("g_a.0.weight", "g_s.6.weight", "h_s.0.weight"),
            encoder_only=("g_a.", "h_a."),
        ),
        Network(
            family="hyperprior_latent_ctx",
            class_name="HyperpriorLatentCodecWithCtx",
            sizes=_LATENT,
            build=HyperpriorLatentCodecWithCtx,
            measure=lambda state: _latent_sizes(state, "hyper."),
            signature=("y.entropy_parameters.0.weight", "hyper.h_a.net.0.weight"),
            encoder_only=("hyper.h_a.",),
        ),
        Network(
            family="hyper_latent_ctx",
            class_name="HyperLatentCodecWithCtx",
            sizes=_LATENT,
            build=_hyper_latent,
            measure=_latent_sizes,
            signature=("h_a.net.0.weight", "h_s.fuse.0.weight", "entropy_bottleneck.quantiles"),
            encoder_only=("h_a.",),
        ),
    )
}


def recognise(state: StateDict) -> tuple[Network, Sizes]:
    """The class and the sizes of a state dict.

    Raises:
        CodecFileError: it is of none of the documented classes, or its shapes contradict each other.
    """
    for network in NETWORKS.values():
        if all(key in state for key in network.signature):
            try:
                return network, network.measure(state)
            except (KeyError, IndexError, ValueError) as error:
                raise CodecFileError(
                    f"looks like {network.class_name}, but its size cannot be told: {error!r}", field="weights"
                ) from error
    known = ", ".join(sorted(network.class_name for network in NETWORKS.values()))
    sample = ", ".join(sorted(state)[:3]) or "no tensor"
    raise CodecFileError(f"a state dict of none of {known}; it holds {sample}, ...", field="weights")


def load_weights(module: EntropyCodedModule, state: StateDict) -> bool:
    """Loads a state dict; tables it lacks are computed.

    Returns:
        True when tables were computed.

    Raises:
        CodecFileError: parameters that are missing, not known, or of other shapes.
    """
    try:
        outcome = module.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise CodecFileError(f"weights do not fit: {_brief(error)}", field="weights") from error
    if outcome.unexpected_keys:
        raise CodecFileError(_listed("unknown", outcome.unexpected_keys), field="weights")
    parameters = {name for name, _ in module.named_parameters()}
    missing = [name for name in outcome.missing_keys if name in parameters]
    if missing:
        raise CodecFileError(_listed("missing", missing), field="weights")
    tables = (*TABLE_BUFFERS, "scale_table")
    absent = any(name.rpartition(".")[2] in tables for name in outcome.missing_keys)
    return module.update(force=absent)


def untrained(network: Network, sizes: Mapping[str, Any], seed: int) -> EntropyCodedModule:
    """A network of random weights, the same for the same seed, with its tables. Raises CodecFileError."""
    if network.converted_from:
        return convert(untrained(NETWORKS[network.converted_from], sizes, seed))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = network.make(sizes)
    module.update()
    return module


def convert(module: EntropyCodedModule) -> ExactVitUnion:
    """The exact form of a network with tables. Raises CodecFileError for one that has none."""
    try:
        return exact_from(module)
    except InvalidInputError as error:
        raise CodecFileError(error.message, field="exact") from error


def _listed(what: str, names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{what} parameters: {', '.join(sorted(names)[:3])}{more}"


def _brief(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[1] if len(lines) > 1 else str(error)
