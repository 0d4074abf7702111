"""Clients of the soak: each checks every answer against what this process coded itself."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mpcompress_client import CodedUnit, CompressionClient, InvalidRequestError, MPCompressError, errors
from tests.soak.own_process import CODEC, EXTRA, ISOLATED

DATA = Path(__file__).parents[1] / "data" / "features_final.npy"
QPS = (16, 24, 32)
# Reasons that somebody who is done harm to may see, once the client has sent the item again as often as it does.
_HARM = ("CODEC_CRASHED", "SERVER_DRAINING", "UNREAD_ANSWERS", "NO_ROOM")

Expected = dict[tuple[str, int, int], bytes]


class Client(threading.Thread):
    """Streams of random items until the deadline.

    Args:
        address: of the server or a proxy.
        seed: of all choices.
        until: monotonic time of its end.
        expected: payloads by (codec, tensor, qp).
        pause_s: longest pause before an answer is read: above 0 a slow reader.
        harmed: whether its connections are cut, so that it may end up without an answer.
    """

    def __init__(
        self, address: str, seed: int, until: float, expected: Expected, *, pause_s: float = 0.0, harmed: bool = False
    ) -> None:
        super().__init__(daemon=True)
        self.ledger: Counter[str] = Counter()
        self.error: BaseException | None = None
        self._address, self._random, self._until, self._expected = address, random.Random(seed), until, expected
        self._pause_s, self._harmed = pause_s, harmed
        self._features = np.load(DATA)

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
        """Some tensors of several shapes over one stream; now and then it is dropped half-way."""
        codec, qp = self._random.choice([CODEC, CODEC, ISOLATED, EXTRA]), self._random.choice(QPS)
        count = self._random.choice([1, 20, 60])
        picks = [self._random.randrange(len(self._features) + 1) for _ in range(count)]

        def items() -> Iterator[np.ndarray]:
            bad = np.full((257, 384), np.nan, np.float16)
            for pick in picks:
                yield self._features[pick] if pick < len(self._features) else bad

        leave_at = self._random.randrange(count) if self._random.random() < 0.1 else None
        units: list[tuple[int, CodedUnit]] = []
        results = client.compress_many(items(), codec=codec, qp=qp, errors="return")
        for index, (pick, result) in enumerate(zip(picks, results, strict=False)):
            if self._pause_s:
                time.sleep(self._random.uniform(0, self._pause_s))
            if index == leave_at:
                results.close()
                self.ledger["streams dropped by the client"] += 1
                return
            if isinstance(result, MPCompressError):
                self._failed(result, bad=pick == len(self._features), codec=codec)
            elif self._expected.get((codec, pick, qp)) == result.payload:
                self.ledger["compressed"] += 1
                units.append((pick, result))
            else:
                self.ledger["WRONG: payload differs"] += 1
        if units:
            self._back(client, units, codec)

    def _back(self, client: CompressionClient, units: list[tuple[int, CodedUnit]], codec: str) -> None:
        damaged = bytearray(units[0][1].to_bytes())
        damaged[-1] ^= 1
        try:
            client.decompress(bytes(damaged))
            self.ledger["WRONG: damaged unit decoded"] += 1
        except errors.ServerUnavailableError as error:
            self._unanswered(error)
        except MPCompressError:
            self.ledger["damaged units refused"] += 1
        for tensor in client.decompress_many((unit for _, unit in units), errors="return"):
            if isinstance(tensor, MPCompressError):
                self._failed(tensor, bad=False, codec=codec)
            else:
                self.ledger["decompressed" if np.isfinite(tensor).all() else "WRONG: not finite"] += 1

    def _failed(self, error: MPCompressError, *, bad: bool, codec: str) -> None:
        reason = getattr(error, "reason", "")
        if bad and isinstance(error, InvalidRequestError):
            self.ledger["bad input refused"] += 1
        elif codec == EXTRA and isinstance(error, errors.UnknownCodecError):
            self.ledger["items for a codec that a reload had taken out"] += 1
        elif reason in _HARM:
            self.ledger[f"items that ended in {reason}"] += 1
        elif isinstance(error, errors.ServerUnavailableError):
            self._unanswered(error)
        else:
            self.ledger[f"WRONG: {error!r}"] += 1

    def _unanswered(self, error: Any) -> None:
        self.ledger["items without an answer after resets" if self._harmed else f"WRONG: {error!r}"] += 1
