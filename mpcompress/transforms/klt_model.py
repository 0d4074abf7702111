"""What family `klt` stores: numbers fitted at calibration, and the rules they keep. The file is `klt_model_file`'s.

All logarithms are integers in units of 1/48 octave, so that one unit is an eighth of a qp step (step = 2^(qp / 6)).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpcompress.codec import QpRange, fingerprint_of
from mpcompress.entropy.ending import LONG, SHORT, Ending
from mpcompress.entropy.tables import CdfTables
from mpcompress.transforms.klt_context import MAGNITUDES, UNITS
from mpcompress.transforms.klt_filter import FilterModel
from mpcompress.transforms.klt_pyramid import kind_count
from mpcompress.transforms.klt_rules import check_arrays, check_numbers

FAMILY = "klt"
VERSIONS: dict[int, tuple[bool, Ending]] = {2: (False, LONG), 3: (True, LONG), 4: (False, SHORT), 5: (True, SHORT)}
"""Whether there is a filter behind the decoder, and how streams end, by bitstream version; symbols are alike in all."""

SCALE_OF_DEVIATION = 0.8
"""E|x| of what is between a normal and a Laplace variable, over its deviation."""

_DECODING = (
    *("mean", "far_mean", "slope", "feedback", "slot", "basis", "basis_group", "predictor", "predictor_scale", "base"),
    *("weight_kind", "weight_level", "weight_component", "evidence", "worth", "centroid"),
)


@dataclass(frozen=True, kw_only=True, eq=False)
class KltModel:
    """A calibrated codec's numbers: C channels = K components, P prefix tokens, D levels, N = 2 + P + 3 D kinds of row.

    Args:
        id: codec id.
        description: one sentence.
        token_res: grid it was made for; None for sequences.
        mean_grid: (h, w) positions that have a mean of their own; those of other grids take the nearest's.
        base_log2: log2 of the step at qp 0, 1/48 octave.
        cutoff: log2(E|x| / step) from which on a coefficient is coded; 1/48 octave.
        prefix_qp_offset_eighths: the prefix tokens' qp less the patches'.
        qp: range that it was fitted for.
        rate: squared steps that a bit is worth to the quantiser. Only encoders use it.
        token_energy: squared distance from the means that few tokens exceed. Only encoders use it.
        domain_typical: how far calibration tensors are from their own statistics, in the median. Only encoders use it.
        domain_bound: distance from the calibration set above which a tensor is reported.
        mean: float16 (P + h * w, C).
        far_mean: float32 (C,), of far tokens.
        slope: float32 (D, 2), finest level first: details from the slope of the low-pass, across and down.
        feedback: float32 (N, 2): coefficients from those to the left and above.
        slot: int16 (N,): which basis a kind has.
        basis: int8 (S, K, G), see `klt_basis`.
        basis_group: uint8 (S, K), group of channels of each component.
        predictor: int8 (P, K, G): prefix token from the root's components.
        predictor_scale: float32 (P, K).
        base: int16 (N, K), log2 E|x|.
        weight_kind: int16 (N, 8): seven weights in 1/256, and a bias in 1/48 octave.
        weight_level: int16 (14, 8), by octaves of scale over step.
        weight_component: int16 (16, 8), by octaves of the component.
        evidence: int16 (96, 17), see `klt_context`.
        worth: int16 (96,).
        centroid: float32 (96, 17): mean of |x| / step where |q| is the column; the last goes on with |q|.
        energy: float32 (N, 8), mean square of a coefficient by octaves of components; 0: unknown. Only encoders use it.
        points: float32 (n, 3), expected log2 of qp step in 1/48 octave, bpfp and NMSE. Only encoders use it.
        tables: 96 tables of q.
        filter: of decoded features; None: there is none.
        ending: of its streams; long in files of versions that had no other.
        card: what a person wants to know: JSON-able.
    """

    id: str
    description: str
    token_res: tuple[int, int] | None
    mean_grid: tuple[int, int]
    base_log2: int
    cutoff: int
    prefix_qp_offset_eighths: int
    qp: QpRange
    rate: float
    token_energy: float
    domain_typical: float
    domain_bound: float
    mean: NDArray[np.float16]
    far_mean: NDArray[np.float32]
    slope: NDArray[np.float32]
    feedback: NDArray[np.float32]
    slot: NDArray[np.int16]
    basis: NDArray[np.int8]
    basis_group: NDArray[np.uint8]
    predictor: NDArray[np.int8]
    predictor_scale: NDArray[np.float32]
    base: NDArray[np.int16]
    weight_kind: NDArray[np.int16]
    weight_level: NDArray[np.int16]
    weight_component: NDArray[np.int16]
    evidence: NDArray[np.int16]
    worth: NDArray[np.int16]
    centroid: NDArray[np.float32]
    energy: NDArray[np.float32]
    points: NDArray[np.float32]
    tables: CdfTables
    filter: FilterModel | None = None
    ending: Ending = SHORT
    card: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_numbers(self)
        check_arrays(self)
        if self.filter is not None:
            self.filter.check(self.channels, self.prefix_tokens)

    @property
    def bitstream_version(self) -> int:
        """Of the units it makes and decodes."""
        own = self.filter is not None, self.ending
        return next(version for version, parts in VERSIONS.items() if parts == own)

    @property
    def channels(self) -> int:
        """C."""
        return int(self.mean.shape[1])

    @property
    def components(self) -> int:
        """K."""
        return int(self.basis.shape[1])

    @property
    def prefix_tokens(self) -> int:
        """P."""
        return int(self.predictor.shape[0])

    @property
    def depth(self) -> int:
        """D."""
        return int(self.slope.shape[0])

    @property
    def kinds(self) -> int:
        """N."""
        return kind_count(self.prefix_tokens, self.depth)

    @cached_property
    def cost(self) -> NDArray[np.float32]:
        """float32 (96, 17): bits of a symbol by |q|. Only encoders use it."""
        return symbol_cost(self.tables)

    @cached_property
    def usual_rest(self) -> NDArray[np.float64]:
        """(1 + P, K + 1): squares to expect in a row of the root or a prefix token, from each component on."""
        # A file may say any int16: what float64 cannot hold is as good as the largest and smallest that it can.
        octaves = np.clip(self.base[: 1 + self.prefix_tokens] / UNITS, -480, 480)
        squares = np.square(np.exp2(octaves) / SCALE_OF_DEVIATION)
        found = np.zeros((len(squares), self.components + 1))
        found[:, :-1] = np.cumsum(squares[:, ::-1], axis=1)[:, ::-1]
        return found

    def fingerprint(self) -> bytes:
        """8 bytes over all that decoding depends on, and nothing else: no name, card, qp range or rate."""
        width = self.token_res[1] if self.token_res else 0
        numbers = [self.bitstream_version, width, *self.mean_grid, self.base_log2, self.cutoff]
        numbers += [self.prefix_qp_offset_eighths, self.tables.precision]
        parts: list[tuple[str, bytes | NDArray[Any]]] = [
            ("family", FAMILY.encode()),
            ("numbers", np.array(numbers, np.int64)),
        ]
        parts += [(name, getattr(self, name)) for name in _DECODING]
        parts += [(f"table_{name}", getattr(self.tables, name)) for name in ("freqs", "lengths", "offsets")]
        if self.filter is not None:
            parts += [("filter_start", np.array([self.filter.start], np.int64))]
            parts += [(f"filter_{name}", array) for name, array in self.filter.arrays()]
        return fingerprint_of(parts)


def symbol_cost(tables: CdfTables) -> NDArray[np.float32]:
    """Bits of |q| = 0 ... 16 in each table, the sign's included; the last stands for all larger ones."""
    begins = np.concatenate([[0], np.cumsum(tables.lengths)[:-1]])
    cost = np.empty((tables.count, MAGNITUDES), np.float32)
    total = float(1 << tables.precision)
    for row, (begin, length, offset) in enumerate(zip(begins, tables.lengths, tables.offsets, strict=True)):
        bits = -np.log2(tables.freqs[begin : begin + length] / total)
        for size in range(MAGNITUDES):
            at, escape = size - int(offset), int(length) - 1
            # An escape, one bit for the side, and the distance as an Exp-Golomb code.
            golomb = 2 + 2 * int(np.log2(at - escape + 1)) if at >= escape else 0
            cost[row, size] = bits[min(at, escape)] + golomb
    cost.flags.writeable = False
    return cost
