"""Clients of the soak: each checks every answer against what this process coded itself."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from mpcompress_client import CodedUnit, CompressionClient, InvalidRequestError, MPCompressError, errors
from tests.soak.cases import EXTRA, LONGEST, MORTAL, Case

_BAD_SHARE = 0.05


class Client(threading.Thread):
    """Streams of random items until the deadline.

    Args:
        address: of the server or a proxy.
        seed: of all choices.
        until: monotonic time of its end.
        cases: by codec.
        pause_s: longest pause before an answer is read: above 0 a slow reader.
        harmed: whether its connections are cut, so that it may end up without an answer.
    """

    def __init__(
        self,
        address: str,
        seed: int,
        until: float,
        cases: Mapping[str, Sequence[Case]],
        *,
        pause_s: float = 0.0,
        harmed: bool = False,
    ) -> None:
        super().__init__(daemon=True)
        self.ledger: Counter[str] = Counter()
        self.error: BaseException | None = None
        self._address, self._random, self._until, self._cases = address, random.Random(seed), until, cases
        self._pause_s, self._harmed = pause_s, harmed

    def run(self) -> None:
        try:
            with CompressionClient(self._address) as client:
                while time.monotonic() < self._until:
                    try:
                        self._stream(client)
                    except errors.ServerUnavailableError as error:
                        self._unanswered(error)
        except BaseException as error:  # handed to the main thread, which reports it
            self.error = error

    def _stream(self, client: CompressionClient) -> None:
        """Some tensors of several sizes over one stream; now and then it is dropped half-way."""
        codec = self._random.choice(list(self._cases))
        (qp,) = {self._random.choice(self._cases[codec]).qp}
        cases = [case for case in self._cases[codec] if case.qp == qp]
        count = self._random.choice([1, LONGEST[codec] // 3 or 1, LONGEST[codec]])
        picks = [None if self._random.random() < _BAD_SHARE else self._random.choice(cases) for _ in range(count)]
        bad = np.full_like(cases[0].tensor, np.nan)
        leave_at = self._random.randrange(count) if self._random.random() < 0.1 else None
        units: list[tuple[Case, CodedUnit]] = []
        tensors = (bad if case is None else case.tensor for case in picks)
        results = client.compress_many(tensors, codec=codec, qp=qp, errors="return")
        # Strict, and results first: one too few or too many is an error of its own.
        for index, (result, case) in enumerate(zip(results, picks, strict=True)):
            if self._pause_s:
                time.sleep(self._random.uniform(0, self._pause_s))
            if index == leave_at:
                results.close()
                self.ledger["streams dropped by the client"] += 1
                return
            if isinstance(result, MPCompressError):
                self._failed(result, bad=case is None, codec=codec)
            elif case is None:
                self.ledger["WRONG: NaN was coded"] += 1
            elif result.payload == case.payload:
                self.ledger[f"compressed, {codec}"] += 1
                units.append((case, result))
            else:
                self.ledger[f"WRONG: {codec} gave another payload"] += 1
        if units:
            self._back(client, units, codec)

    def _back(self, client: CompressionClient, units: list[tuple[Case, CodedUnit]], codec: str) -> None:
        damaged = bytearray(units[0][1].to_bytes())
        damaged[-1] ^= 1
        try:
            client.decompress(bytes(damaged))
            self.ledger["WRONG: damaged unit decoded"] += 1
        except errors.ServerUnavailableError as error:
            self._unanswered(error)
        except MPCompressError:
            self.ledger["damaged units refused"] += 1
        results = client.decompress_many((unit for _, unit in units), errors="return")
        for tensor, (case, _) in zip(results, units, strict=True):
            if isinstance(tensor, MPCompressError):
                self._failed(tensor, bad=False, codec=codec)
            elif _same(tensor, case):
                self.ledger[f"decompressed, {codec}"] += 1
            else:
                self.ledger[f"WRONG: {codec} gave another tensor"] += 1

    def _failed(self, error: MPCompressError, *, bad: bool, codec: str) -> None:
        reason = getattr(error, "reason", "")
        if bad and isinstance(error, InvalidRequestError):
            self.ledger["bad input refused"] += 1
        elif codec == EXTRA and isinstance(error, errors.UnknownCodecError):
            self.ledger["items for a codec that a reload had taken out"] += 1
        elif codec in MORTAL and reason == "CODEC_CRASHED":
            self.ledger["items whose processes were killed more often than the client tries"] += 1
        elif self._pause_s and reason == "UNREAD_ANSWERS":
            self.ledger["items of the slow reader that ended in UNREAD_ANSWERS"] += 1
        elif isinstance(error, errors.ServerUnavailableError):
            self._unanswered(error)
        else:
            self.ledger[f"WRONG: {error!r}"] += 1

    def _unanswered(self, error: errors.ServerUnavailableError) -> None:
        self.ledger["items without an answer after resets" if self._harmed else f"WRONG: {error!r}"] += 1


def _same(tensor: np.ndarray, case: Case) -> bool:
    """Whether a tensor is the one that this process decoded."""
    if tensor.dtype != case.decoded.dtype or tensor.shape != case.decoded.shape:
        return False
    if not case.rounding:
        return tensor.tobytes() == case.decoded.tobytes()
    return bool(np.abs(tensor - case.decoded).max() <= case.rounding * np.abs(case.decoded).max())
