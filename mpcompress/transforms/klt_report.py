"""What a calibration gives: the codec file, figures from held-out tensors, and the model card that tells both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from mpcompress.registry import preset_ids

_WITHOUT_CODEC_BYTES = 21
_FINGERPRINT_BYTES = 9  # and its version and arithmetic


@lru_cache(maxsize=256)
def unit_overhead_bytes(codec_id: str) -> int:
    """What a unit costs beside its entropy-coded bytes, at most; counted in every rate reported here.

    That is the header of a .mpc file with a qp and the width of another grid, see docs/format.md. It depends on the
    codec's id: a number of one byte says all of a shipped codec; other ids are spelt, three characters in two bytes.
    """
    if codec_id in preset_ids():
        return _WITHOUT_CODEC_BYTES + 1
    return _WITHOUT_CODEC_BYTES + _FINGERPRINT_BYTES + 2 * (len(codec_id) // 3 + 1)


@dataclass(frozen=True, kw_only=True)
class RatePoint:
    """Over the held-out tensors at one qp: means, worst and standard deviations.

    bpfp counts the payload and `unit_overhead_bytes`; NMSE is of `mpcompress.metrics`.
    """

    qp_eighths: int
    bpfp: float
    nmse: float
    worst_nmse: float
    worst_bpfp: float
    bpfp_deviation: float = 0.0
    nmse_deviation: float = 0.0


@dataclass(frozen=True, kw_only=True)
class CalibrationReport:
    """What was fitted on what, and what to expect of it; `filter_from_qp_eighths`: None without a filter."""

    codec_id: str
    tensors: int
    held_out: int
    channels: int
    token_res: tuple[int, int] | None
    prefix_tokens: int
    points: tuple[RatePoint, ...]
    warnings: tuple[str, ...]
    filter_from_qp_eighths: int | None = None


@dataclass(frozen=True, kw_only=True)
class CalibrationResult:
    """A codec file and what is known about it."""

    file: bytes = field(repr=False)
    report: CalibrationReport
    description: str
    fingerprint: bytes
    notes: Mapping[str, str] = field(default_factory=dict)

    def save(self, path: str | Path) -> None:
        """Writes the codec file, and its model card next to it with the suffix .md."""
        Path(path).write_bytes(self.file)
        Path(path).with_suffix(".md").write_text(self.model_card(), encoding="utf-8")

    def model_card(self) -> str:
        """Markdown: what it was calibrated on, what to expect, what it is not for."""
        report = self.report
        grid = "sequences" if report.token_res is None else f"{report.token_res[0]} x {report.token_res[1]} tokens"
        lines = [f"# {report.codec_id}", "", self.description, ""]
        lines += [f"- **{name}**: {text}" for name, text in self.notes.items()]
        lines += [
            f"- **Calibrated on**: {report.tensors} tensors; {report.held_out} others held out for the table below",
            f"- **Shape**: {report.prefix_tokens} prefix tokens + {grid}, {report.channels} channels",
            f"- **Family, fingerprint**: klt, `{self.fingerprint.hex()}`",
            *self._filter_line(),
            "",
            "| qp | bpfp, mean ± deviation | bpfp, worst | NMSE, mean ± deviation | NMSE, worst |",
            "|---|---|---|---|---|",
        ]
        lines += [
            f"| {p.qp_eighths / 8:g} | {p.bpfp:.3f} ± {p.bpfp_deviation:.3f} | {p.worst_bpfp:.3f} | "
            f"{p.nmse:.4f} ± {p.nmse_deviation:.4f} | {p.worst_nmse:.4f} |"
            for p in report.points
        ]
        lines += [
            "",
            f"bpfp: bits per feature point, payload + {unit_overhead_bytes(report.codec_id)} bytes. "
            "NMSE: squared error over variance.",
            "",
            "Not for features of another model or another tap: those cost several times the bits. A tensor unlike the",
            "calibration set is coded with a warning.",
        ]
        lines += ["", *(f"Warning: {warning}" for warning in report.warnings)] if report.warnings else []
        return "\n".join(lines) + "\n"

    def _filter_line(self) -> list[str]:
        begins = self.report.filter_from_qp_eighths
        return [] if begins is None else [f"- **Filter behind the decoder**: from qp {begins / 8:g} on"]
