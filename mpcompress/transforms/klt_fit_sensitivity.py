"""How fine prefix tokens should be beside the patches, from what the model's answer makes of errors in either.

The rest of the model turns features into an answer. Noise on the prefix tokens, and apart from it noise of the same
power on the patches, changes the answer by so much for each element. Bits are spent best where the last bit of either
changes the answer equally (Shoham and Gersho 1988, doi 10.1109/29.90373): with errors in proportion to squared steps,
steps stand as the inverse roots of the changes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpcompress.errors import InvalidInputError
from mpcompress.transforms.klt_context import UNITS

__all__ = ["Answer", "prefix_offset_for"]

Answer = Callable[[NDArray[np.float32]], NDArray[Any]]
"""Features (L, C) to any array of floats, its squared error being what counts."""

_TENSORS = 24
_DRAWS = 2
_NOISE = 0.15  # of the patches' deviation: about what coding at the default qp leaves
_FINEST, _COARSEST = -4 * UNITS, UNITS


def prefix_offset_for(answer: Answer, tensors: Sequence[NDArray[np.float32]], prefix: int) -> int:
    """The prefix tokens' qp less the patches', in eighths: -192 to 48.

    Args:
        answer: the rest of the model.
        tensors: (L, C) each, of which 24 are used at most.
        prefix: prefix tokens, at least 1.

    Raises:
        InvalidInputError: the answer changes with neither, or is not finite.
    """
    rng = np.random.default_rng(0)
    changes = np.zeros(2)
    for x in tensors[:: -(-len(tensors) // _TENSORS)]:
        exact = _answered(answer, x)
        size = _NOISE * float(x[prefix:].std())
        for part, tokens in enumerate((slice(0, prefix), slice(prefix, None))):
            for _ in range(_DRAWS):
                noisy = x.copy()
                noise = rng.normal(size=noisy[tokens].shape)
                noisy[tokens] += (size * noise).astype(np.float32)
                changes[part] += np.square(_answered(answer, noisy) - exact).sum() / np.square(noise).sum()
    if not changes.any():
        raise InvalidInputError("the answer does not change with the features", field="answer")
    if not changes.all():
        return _FINEST if changes[0] else _COARSEST
    return round(min(max(UNITS / 2 * math.log2(changes[1] / changes[0]), _FINEST), _COARSEST))


def _answered(answer: Answer, x: NDArray[np.float32]) -> NDArray[np.float64]:
    found = np.asarray(answer(x), np.float64)
    if not np.isfinite(found).all():
        raise InvalidInputError("the answer is not finite", field="answer")
    return found
