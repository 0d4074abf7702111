"""What the demo shows: one row of figures per codec and qp, as a table, as JSON and as a picture."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from rich import box
from rich.console import Group
from rich.table import Table

__all__ = ["Measurement", "Row", "Sample", "draw", "summarise", "tables", "write_json"]


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One picture's features through one codec at one qp."""

    raw_bytes: int
    """Features as plain float16."""
    mpc_bytes: int
    """The complete .mpc file: magic, header and payload."""
    bpfp: float
    """8 * mpc_bytes / elements."""
    nmse: float
    """Squared error of the features over their variance."""
    cls_cosine: float
    """Final CLS token, computed from decoded features, against the one from the original features."""
    saliency_iou: float
    """Overlap of the salient areas: intersection over union of the maps thresholded at 0.5."""
    encode_ms: float
    """In the codec alone, without gRPC."""
    decode_ms: float
    rpc_ms: float
    """Both calls as the client sees them: the codec, and transport, queueing and checks."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """The medians of one codec at one qp over the pictures."""

    codec: str
    qp: float
    ratio: float
    """raw_bytes / mpc_bytes."""
    median: Measurement


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One picture, for the figure."""

    name: str
    picture: Image.Image
    raw_bytes: int
    """Features as plain float16."""
    before: npt.NDArray[np.float32]
    """Saliency map of the uncompressed features, (224, 224), 0..1."""
    after: dict[str, tuple[int, npt.NDArray[np.float32]]]
    """Heading -> .mpc bytes and the saliency map of the decoded features."""


def summarise(codec: str, qp: float, measurements: Sequence[Measurement]) -> Row:
    """Take the median of every figure over the pictures."""
    figures: dict[str, Any] = {
        field.name: statistics.median(getattr(one, field.name) for one in measurements)
        for field in dataclasses.fields(Measurement)
    }
    median = Measurement(**figures)
    return Row(codec=codec, qp=qp, ratio=median.raw_bytes / median.mpc_bytes, median=median)


def tables(rows: Sequence[Row], *, pictures: int) -> Group:
    """Lay the rows out for a terminal of 80 columns, one table per codec."""
    views: dict[str, Table] = {}
    for row in rows:
        if row.codec not in views:
            view = views[row.codec] = Table(
                title=f"{row.codec}, medians of {pictures} pictures", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0)
            )
            for heading in (
                "qp",
                "fp16 B",
                ".mpc B",
                "ratio",
                "bpfp",
                "NMSE",
                "CLS cos",
                "IoU",
                "enc ms",
                "RPC",
                "dec",
            ):
                view.add_column(heading, justify="right", no_wrap=True)
        m = row.median
        views[row.codec].add_row(
            *(f"{row.qp:g}", f"{m.raw_bytes:.0f}", f"{m.mpc_bytes:.0f}", f"{row.ratio:.0f}x", f"{m.bpfp:.3f}"),
            *(f"{m.nmse:.4f}", f"{m.cls_cosine:.4f}", f"{m.saliency_iou:.3f}"),
            *(f"{m.encode_ms:.1f}", f"{m.rpc_ms:.1f}", f"{m.decode_ms:.1f}"),
        )
    return Group(
        *views.values(), "ms: enc and dec in the codec alone; RPC the two calls as the client sees them, codec included"
    )


def write_json(rows: Sequence[Row], path: Path, *, pictures: int) -> None:
    """Write the rows and the number of pictures they are medians of."""
    content = {"pictures": pictures, "rows": [dataclasses.asdict(row) for row in rows]}
    path.write_text(json.dumps(content, indent=1) + "\n")


def draw(samples: Sequence[Sample], path: Path) -> None:
    """Draw a row per picture: itself, its saliency before, and after each setting, with the sizes, as PNG."""
    import matplotlib

    matplotlib.use("Agg")  # no screen needed
    from matplotlib import pyplot

    headings = ["picture", "saliency, not compressed", *samples[0].after]
    figure, axes = pyplot.subplots(
        len(samples), len(headings), figsize=(2.1 * len(headings), 2.3 * len(samples)), squeeze=False
    )
    for cells, sample in zip(axes, samples, strict=True):
        captions = [
            sample.name,
            f"float16: {sample.raw_bytes:,} bytes",
            *(f"{size:,} bytes" for size, _ in sample.after.values()),
        ]
        maps = [sample.before, *(saliency for _, saliency in sample.after.values())]
        cells[0].imshow(sample.picture)
        for cell, saliency in zip(cells[1:], maps, strict=True):
            cell.imshow(saliency, vmin=0, vmax=1, cmap="magma")
            cell.contour(saliency, levels=[0.5], colors="white", linewidths=0.7)
        for cell, caption in zip(cells, captions, strict=True):
            cell.set_xlabel(caption, fontsize=7)
            cell.set_xticks([])
            cell.set_yticks([])
    for cell, heading in zip(axes[0], headings, strict=True):
        cell.set_title(heading, fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
