"""The training loop: rate-distortion steps, checkpoints, validation with real coding, and a codec file at the end."""

from __future__ import annotations

import copy
import math
import os
import pickle
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd import backward

from mpcompress.checkpoints import numpy_state
from mpcompress.errors import CodecFileError, InvalidInputError
from mpcompress.latent_codecs._module import EntropyCodedModule
from mpcompress.neural.arrays import find_device
from mpcompress.neural.base import Loaded
from mpcompress.neural.codec_file import NeuralFile
from mpcompress.neural.networks import NETWORKS
from mpcompress.training.config import TrainingConfig
from mpcompress.training.data import FeatureSet, split
from mpcompress.training.report import RatePoint, TrainingReport, TrainingResult
from mpcompress.training.tasks import Task, task_for
from mpcompress.training.validate import measure

__all__ = ["Progress", "train"]

Progress = Callable[[int, int, float, float], None]
_FINAL_RATE = 0.1
_WARM_UP_STEPS = 200
_CAREFUL_RATE = 0.05
_BAD_STEPS = 20


def train(
    config: TrainingConfig,
    features: str | Path | Iterable[str | Path | NDArray[Any]] | FeatureSet,
    *,
    validation: str | Path | Iterable[str | Path | NDArray[Any]] | FeatureSet | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    on_point: Callable[[RatePoint], None] | None = None,
) -> TrainingResult:
    """Trains a codec and codes held-out tensors with it.

    Args:
        config: what to train.
        features: files, folders and arrays (L, C), all of one shape; a `FeatureSet` for those with contexts.
        validation: held-out tensors; None: every tenth of `features`, which is then not trained on.
        checkpoint: where to keep the state of training; None: nowhere.
        resume: go on from `checkpoint` if it is there.
        progress: called after each step with (step, steps, bpfp, NMSE), those of that batch.
        on_point: called with each measurement.

    Raises:
        InvalidInputError: features and configuration that do not fit, or a loss that stays infinite.
        CodecFileError: a checkpoint that is damaged or of another run.
    """
    path = None if checkpoint is None else Path(checkpoint)
    trained_on, held_out = split(
        _open(features), None if validation is None else _open(validation), config.validation_tensors
    )
    run = _Run(config, task_for(config, trained_on))
    if resume and path is not None and path.is_file():
        run.restore(path)
    start = time.monotonic()
    try:
        _loop(run, held_out, path, progress, on_point)
    except KeyboardInterrupt:
        if path is not None:
            run.save(path)
        raise
    report = TrainingReport(
        config=config.to_dict(),
        tensors=len(trained_on),
        validation_tensors=len(held_out),
        parameters=sum(parameter.numel() for parameter in run.net.parameters()),
        steps=run.step,
        train_s=time.monotonic() - start,
        device=run.device.type,
        points=tuple(run.points),
    )
    return run.result(report)


def _loop(
    run: _Run,
    held_out: FeatureSet,
    path: Path | None,
    progress: Progress | None,
    on_point: Callable[[RatePoint], None] | None,
) -> None:
    config = run.config
    with torch.random.fork_rng(devices=[run.device] if run.device.type == "cuda" else []):
        while run.step < config.steps:
            rate, error = run.advance()
            if progress is not None:
                progress(run.step, config.steps, rate, error)
            last = run.step == config.steps
            if run.step % config.validate_every == 0 or last:
                run.points.append(measure(run.codec(), held_out, run.task.token_res, run.step))
                if on_point is not None:
                    on_point(run.points[-1])
            if path is not None and (run.step % config.checkpoint_every == 0 or last):
                run.save(path)


def _open(features: Any) -> FeatureSet:
    return features if isinstance(features, FeatureSet) else FeatureSet.open(features)


class _Run:
    """The state of one training run."""

    def __init__(self, config: TrainingConfig, task: Task) -> None:
        self.config, self.task = config, task
        self.device = find_device(config.device)
        self.step = 0
        self.points: list[RatePoint] = []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.net: EntropyCodedModule = task.build().to(self.device)
        named = list(self.net.named_parameters())
        others = [(name, p) for name, p in named if not name.endswith("quantiles")]
        self._parameters = [parameter for _, parameter in others]
        self._optimizer = torch.optim.Adam(_groups(others, task.careful), lr=config.learning_rate)
        quantiles = [p for name, p in named if name.endswith("quantiles")]
        self._aux = torch.optim.Adam(quantiles, lr=config.aux_learning_rate)
        self._bad = 0

    def advance(self) -> tuple[float, float]:
        """One step; returns bpfp and NMSE of its batch."""
        config = self.config
        inputs = {name: torch.from_numpy(x).to(self.device) for name, x in self.task.inputs(self.step).items()}
        for group in self._optimizer.param_groups:
            group["lr"] = config.learning_rate * group["share"] * _schedule(self.step, config.steps)
        self.net.train()
        # The noise of a step depends on the step alone, so that a resumed run repeats an uninterrupted one.
        torch.manual_seed(config.seed * 1_000_003 + self.step)
        with self._precision():
            rate, error = self.task.losses(self.net, inputs)
        self._optimizer.zero_grad(set_to_none=True)
        backward(rate + config.lmbda * error)
        norm = nn.utils.clip_grad_norm_(self._parameters, config.clip_norm)
        self._apply(norm)
        self._aux.zero_grad(set_to_none=True)
        backward(self.net.aux_loss())
        self._aux.step()
        self.step += 1
        return rate.item(), error.item()

    def _apply(self, norm: Tensor) -> None:
        """Skips a step whose gradient is not finite: one of them would spoil every weight."""
        if bool(torch.isfinite(norm)):
            self._optimizer.step()
            self._bad = 0
            return
        self._bad += 1
        if self._bad >= _BAD_STEPS:
            raise InvalidInputError(
                f"{_BAD_STEPS} steps in a row had no finite gradient: lower learning_rate", field="learning_rate"
            )

    def _precision(self) -> AbstractContextManager[Any]:
        half = self.config.precision == "bfloat16" or (self.config.precision == "auto" and self.device.type == "cuda")
        return torch.autocast(self.device.type, torch.bfloat16) if half else nullcontext()

    def codec(self) -> Any:
        """The codec as it is now, with tables; training goes on with other objects."""
        return self.task.codec(self._loaded())

    def _loaded(self) -> Loaded:
        net = copy.deepcopy(self.net).eval()
        # The auxiliary loss follows the quantiles slowly; here they are searched.
        net.update(force=True, update_quantiles=True)
        return Loaded(
            id=self.config.codec_id,
            network=NETWORKS[self.config.family],
            module=net,
            device=self.device,
            description=self.config.description or f"{self.config.family} trained for lambda {self.config.lmbda:g}",
            token_res=self.task.token_res,
            settings=self.task.settings,
        )

    def result(self, report: TrainingReport) -> TrainingResult:
        """The codec file of the present state."""
        loaded = self._loaded()
        file = NeuralFile(
            id=loaded.id,
            family=self.config.family,
            description=loaded.description,
            sizes=self.task.sizes,
            tensors=numpy_state(loaded.module.state_dict()),
            token_res=loaded.token_res,
            settings=loaded.settings,
            card=report.to_dict(),
        )
        return TrainingResult(file=file, report=report, fingerprint=self.task.codec(loaded).fingerprint)

    def save(self, path: Path) -> None:
        """Writes a checkpoint that is there whole or not at all."""
        state = {
            "config": self.config.to_dict(),
            "step": self.step,
            "points": [[p.step, p.bpfp, p.nmse, p.worst_nmse] for p in self.points],
            "state_dict": self.net.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "aux": self._aux.state_dict(),
        }
        beside = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            torch.save(state, beside)
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)

    def restore(self, path: Path) -> None:
        """Goes on from a checkpoint. Raises CodecFileError when it is of another run."""
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
            differs = self.config.differs(state["config"])
            if not differs:
                self.net.load_state_dict(state["state_dict"])
                self._optimizer.load_state_dict(state["optimizer"])
                self._aux.load_state_dict(state["aux"])
                self.step = int(state["step"])
                self.points = [RatePoint(step=s, bpfp=b, nmse=n, worst_nmse=w) for s, b, n, w in state["points"]]
        except (OSError, RuntimeError, ValueError, KeyError, TypeError, EOFError, pickle.UnpicklingError) as error:
            raise CodecFileError(f"{path.name}: not a checkpoint of this run: {error}", field="checkpoint") from error
        if differs:
            raise CodecFileError(
                f"{path.name} is of a run with another {', '.join(differs)}; remove it to start anew",
                field="checkpoint",
            )


def _groups(named: Sequence[tuple[str, nn.Parameter]], careful: tuple[str, ...]) -> list[dict[str, Any]]:
    """Parameters with their share of the learning rate."""
    lifted = [parameter for name, parameter in named if careful and name.startswith(careful)]
    free = [parameter for name, parameter in named if not (careful and name.startswith(careful))]
    groups = [{"params": free, "share": 1.0}]
    return [*groups, {"params": lifted, "share": _CAREFUL_RATE}] if lifted else groups


def _schedule(step: int, steps: int) -> float:
    """Factor of the learning rate: up in a straight line, then along a cosine down to a tenth."""
    rise = min(1.0, (step + 1) / max(1, min(_WARM_UP_STEPS, steps // 10)))
    return rise * (_FINAL_RATE + (1 - _FINAL_RATE) * (1 + math.cos(math.pi * min(step / steps, 1.0))) / 2)
