"""What training gives: a codec file, the curve of its validation, a model card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mpcompress.neural.codec_file import NeuralFile

__all__ = ["RatePoint", "TrainingReport", "TrainingResult"]


@dataclass(frozen=True, kw_only=True)
class RatePoint:
    """Validation with real coding after `step` steps.

    bpfp counts the streams, their sizes and the unit's header; NMSE is that of `mpcompress.metrics`, averaged over
    tensors.
    """

    step: int
    bpfp: float
    nmse: float
    worst_nmse: float


@dataclass(frozen=True, kw_only=True)
class TrainingReport:
    """What was trained on what, and what came of it.

    Args:
        config: of the run.
        tensors: trained on.
        validation_tensors: held out and coded.
        parameters: of the network.
        steps: done in all, resumed ones included.
        train_s: seconds of this run.
        device: where it ran.
        points: in order of steps; the last one is of the file.
    """

    config: Mapping[str, Any]
    tensors: int
    validation_tensors: int
    parameters: int
    steps: int
    train_s: float
    device: str
    points: tuple[RatePoint, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dictionaries."""
        return {**asdict(self), "config": dict(self.config), "points": [asdict(point) for point in self.points]}


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """A codec file and what is known about it."""

    file: NeuralFile = field(repr=False)
    report: TrainingReport
    fingerprint: bytes

    def save(self, path: str | Path) -> None:
        """Writes the codec file, and its model card next to it with the suffix .md."""
        Path(path).write_bytes(self.file.to_bytes())
        Path(path).with_suffix(".md").write_text(self.model_card(), encoding="utf-8")

    def model_card(self) -> str:
        """Markdown: what it was trained on, what to expect, what it is not for."""
        report, config = self.report, self.report.config
        sizes = ", ".join(f"{name}={value}" for name, value in self.file.sizes.items())
        lines = [
            f"# {self.file.id}",
            "",
            self.file.description,
            "",
            f"- **Trained on**: {report.tensors} tensors; {report.validation_tensors} others coded for the table below",
            f"- **Loss**: bpfp + {config['lmbda']:g} NMSE; {report.steps} steps of {config['batch_size']} tensors",
            f"- **Network**: {sizes}; {report.parameters} parameters",
            f"- **Family, fingerprint**: {self.file.family}, `{self.fingerprint.hex()}`",
            f"- **Arithmetic**: float32 on {report.device}; decode with the same kind of device and libraries",
            "",
            "| steps | bpfp, mean | NMSE, mean | NMSE, worst |",
            "|---|---|---|---|",
        ]
        lines += [f"| {p.step} | {p.bpfp:.4f} | {p.nmse:.4f} | {p.worst_nmse:.4f} |" for p in report.points]
        lines += [
            "",
            "bpfp: bits per feature point of the whole unit, coded for real. NMSE: squared error over variance.",
            "",
            "Not for features of another model or another layer.",
        ]
        return "\n".join(lines) + "\n"
