"""What differs between the families: how a network is made for the features, fed, and judged."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpcompress.errors import CodecFileError, InvalidInputError
from mpcompress.latent_codecs._module import EntropyCodedModule
from mpcompress.neural.base import Loaded, NeuralCodec
from mpcompress.neural.feature_hyperprior import FeatureHyperpriorCodec
from mpcompress.neural.maps import CONDITIONS, MapForm
from mpcompress.neural.networks import NETWORKS
from mpcompress.neural.vit_union import VitUnionFeatureCodec
from mpcompress.training.config import TrainingConfig
from mpcompress.training.data import FeatureSet, grid_of, statistics
from mpcompress.training.warm_start import warm_start

__all__ = ["Task", "task_for"]

Float = NDArray[np.float32]


class Task(ABC):
    """One family on one set of features.

    Attributes:
        sizes: constructor arguments of the network.
        token_res: grid of the codec file.
        settings: settings of the codec file.
        careful: prefixes of parameters that take small steps.
    """

    sizes: dict[str, Any]
    token_res: tuple[int, int] | None = None
    settings: dict[str, Any]
    careful: tuple[str, ...] = ()

    def __init__(self, config: TrainingConfig, features: FeatureSet) -> None:
        self.config = config
        self.features = features

    def build(self) -> EntropyCodedModule:
        """The network at the start of training. Raises InvalidInputError for impossible sizes."""
        try:
            return NETWORKS[self.config.family].make(self.sizes)
        except CodecFileError as error:
            raise InvalidInputError(error.message, field=error.field) from error

    @abstractmethod
    def inputs(self, step: int) -> dict[str, Float]:
        """The arrays of a step's batch."""

    @abstractmethod
    def losses(self, net: Any, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Bpfp and NMSE of a batch, differentiable."""

    @abstractmethod
    def codec(self, loaded: Loaded) -> NeuralCodec:
        """The adapter that codes for real."""


class VitTask(Task):
    """`vit_union` and `vit_union_ctx`."""

    def __init__(self, config: TrainingConfig, features: FeatureSet) -> None:
        super().__init__(config, features)
        tokens, channels = features.shape
        self.token_res = grid_of(tokens, config.prefix_tokens, config.token_res)
        self.sizes = {**config.sizes, "h_dim": channels, "num_prefix_tokens": config.prefix_tokens}
        self.settings = {}
        self._some = features.some()
        self._variance = statistics(self._some)
        self._check_context()

    def _check_context(self) -> None:
        wanted = self.config.family == "vit_union_ctx"
        if wanted != bool(self.features.contexts):
            said = "needs the features' contexts" if wanted else "takes no contexts"
            raise InvalidInputError(f"family {self.config.family} {said}", field="context")
        if wanted:
            ctx = self.features.item(0)["ctx"]
            if ctx.shape[1:] != self.token_res:
                said = f"contexts are maps of {ctx.shape[1:]}, the patches a grid of {self.token_res}"
                raise InvalidInputError(said, field="context")
            self.sizes["ctx_dim"] = ctx.shape[0]

    def build(self) -> EntropyCodedModule:
        """See `Task.build`."""
        net = super().build()
        if self.config.warm_start and self.token_res is not None:
            warm_start(net, self._some, self.token_res, self.config.lmbda)
            # Lifted inputs are large and positive: a common step of all their weights moves every output.
            self.careful = ("f_a.", "f_s.", "cond_enc.", "cond_dec.")
        return net

    def inputs(self, step: int) -> dict[str, Float]:
        """See `Task.inputs`."""
        return self.features.batch(step, self.config.batch_size, self.config.seed)

    def losses(self, net: Any, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """See `Task.losses`."""
        h = inputs["h"]
        context = [inputs["ctx"]] if "ctx" in inputs else []
        out = net(h, *context, token_res=self.token_res)
        return _bits(out) / h.numel(), (out["h_hat"].float() - h).square().mean() / self._variance

    def codec(self, loaded: Loaded) -> NeuralCodec:
        """See `Task.codec`."""
        return VitUnionFeatureCodec(loaded)


class MapTask(Task):
    """`feature_hyperprior`: crops of packed maps; NMSE is that of the map."""

    def __init__(self, config: TrainingConfig, features: FeatureSet) -> None:
        super().__init__(config, features)
        if features.contexts:
            raise InvalidInputError("family feature_hyperprior takes no contexts", field="context")
        condition = config.condition
        if condition is not None and condition not in CONDITIONS:
            known = ", ".join(CONDITIONS)
            raise InvalidInputError(f"unknown condition {condition!r}; known: {known}", field="condition")
        self.settings = dict(config.settings) if condition is None else CONDITIONS[condition].settings
        self.sizes = {"N": 128, "M": 192, **config.sizes}
        try:
            self._form = MapForm.of(self.settings)
        except CodecFileError as error:
            raise InvalidInputError(error.message, field="settings") from error
        if self._form.layout is None:
            raise InvalidInputError("give a condition, or model_type, trun_low and trun_high", field="condition")
        self._variance = statistics(np.concatenate([self._form.pack(x) for x in features.some()]))

    def inputs(self, step: int) -> dict[str, Float]:
        """See `Task.inputs`."""
        rng = np.random.default_rng([self.config.seed, step])
        h = self.features.batch(step, self.config.batch_size, self.config.seed)["h"]
        return {"x": np.concatenate([self._crop(self._form.pack(x), rng) for x in h])}

    def _crop(self, maps: Float, rng: np.random.Generator) -> Float:
        height, width = (min(side, given) for side, given in zip(maps.shape[2:], self.config.patch, strict=True))
        top, left = rng.integers(maps.shape[2] - height + 1), rng.integers(maps.shape[3] - width + 1)
        return maps[:, :, top : top + height, left : left + width]

    def losses(self, net: Any, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """See `Task.losses`."""
        x = inputs["x"]
        out = net(x)
        return _bits(out) / x.numel(), (out["x_hat"].float() - x).square().mean() / self._variance

    def codec(self, loaded: Loaded) -> NeuralCodec:
        """See `Task.codec`."""
        return FeatureHyperpriorCodec(loaded)


def _bits(out: Mapping[str, Any]) -> Tensor:
    likelihoods = out["likelihoods"].values()
    return torch.stack([-torch.log2(part.float()).sum() for part in likelihoods]).sum()


_TASKS: dict[str, type[Task]] = {"vit_union": VitTask, "vit_union_ctx": VitTask, "feature_hyperprior": MapTask}


def task_for(config: TrainingConfig, features: FeatureSet) -> Task:
    """The task of a configuration. Raises InvalidInputError when features and configuration do not fit."""
    return _TASKS[config.family](config, features)
