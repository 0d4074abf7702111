"""Many files through a codec: read ahead, coded in order, each result written whole, one failure not the end of all."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from mpcompress_client.cli.files import write_whole
from mpcompress_client.cli.progress import Bar, Watch, bar
from mpcompress_client.cli.resume import Record
from mpcompress_client.cli.sources import PIPE, Job
from mpcompress_client.errors import (
    AccessDeniedError,
    MPCompressError,
    ServerUnavailableError,
)

InputT = TypeVar("InputT")
ResultT = TypeVar("ResultT")
# What goes wrong with one item and would with every other.
FATAL: tuple[type[MPCompressError], ...] = (ServerUnavailableError, AccessDeniedError)


@dataclass
class Outcome:
    """What became of the jobs: facts of each result, skipped outputs, and errors by input."""

    done: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """0, or 1 when something failed."""
        return 1 if self.failed else 0


@dataclass(frozen=True, kw_only=True)
class Batch(Generic[InputT, ResultT]):
    """How the jobs of one command are done.

    Args:
        title: what the progress bar says.
        read: the input of a job; may raise OSError and MPCompressError.
        code: results of many inputs, in order, an error in the place of each that failed.
        encode: the bytes of a result's file, and facts about it. May raise as `read`.
        record: what earlier calls have done, where the results of this one are noted; None notes nothing.
        fatal: errors of one item that every other would meet too.
        watch: hears where the items are, for the bar.
    """

    title: str
    read: Callable[[Job], InputT]
    code: Callable[[Iterable[InputT]], Iterator[ResultT | MPCompressError]]
    encode: Callable[[Job, ResultT], tuple[bytes, dict[str, Any]]]
    record: Record | None
    fatal: tuple[type[MPCompressError], ...] = FATAL
    watch: Watch | None = None

    def run(self, jobs: Sequence[Job], *, resume: bool) -> Outcome:
        """Does the jobs; with `resume` only those that are not done.

        Raises:
            MPCompressError: one of `fatal`.
        """
        outcome = Outcome()
        # Filled by the thread that reads ahead: each job with the error of reading it, in the order of the jobs.
        started: deque[tuple[Job, Exception | None]] = deque()

        with bar(self.title, len(jobs), self.watch) as shown:

            def inputs() -> Iterator[InputT]:
                for job in jobs:
                    if resume and self._is_done(job):
                        outcome.skipped.append(str(job.output))
                        shown.leave_out()
                        continue
                    try:
                        value = self.read(job)
                    except (OSError, MPCompressError) as error:
                        started.append((job, error))
                        continue
                    started.append((job, None))
                    yield value

            def settle(result: ResultT | MPCompressError | None) -> None:
                """Settles the jobs that could not be read, and the one that `result` belongs to."""
                while started:
                    job, error = started.popleft()
                    shown.advance()
                    if error is not None:
                        self._fail(outcome, job, error, shown)
                    elif result is not None:
                        self._finish(outcome, job, result, shown)
                        break

            for result in self.code(inputs()):
                settle(result)
            settle(None)
        return outcome

    def run_one(self, job: Job, *, resume: bool) -> Outcome:
        """Does one job; whatever goes wrong with it is raised."""
        outcome = Outcome()
        if resume and self._is_done(job):
            outcome.skipped.append(str(job.output))
            return outcome
        with bar(self.title, 1, self.watch):
            (result,) = self.code([self.read(job)])
        if isinstance(result, MPCompressError):
            raise result
        outcome.done.append(self._written(job, result))
        return outcome

    def _is_done(self, job: Job) -> bool:
        try:
            return self.record is not None and self.record.is_done(job)
        except OSError:
            return False

    def _written(self, job: Job, result: ResultT) -> dict[str, Any]:
        data, facts = self.encode(job, result)
        if self.record is not None:
            self.record.note(job, data)
        if str(job.output) == PIPE:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        else:
            write_whole(job.output, data)
        return {"input": str(job.source), **facts}

    def _finish(self, outcome: Outcome, job: Job, result: ResultT | MPCompressError, shown: Bar) -> None:
        if isinstance(result, MPCompressError):
            if isinstance(result, self.fatal):
                raise result
            self._fail(outcome, job, result, shown)
            return
        try:
            job.output.parent.mkdir(parents=True, exist_ok=True)
            outcome.done.append(self._written(job, result))
        except MPCompressError as error:
            self._fail(outcome, job, error, shown)

    def _fail(self, outcome: Outcome, job: Job, error: Exception, shown: Bar) -> None:
        text = " ".join(str(error).split())
        line = text if str(job.source) in text else f"{job.source}: {text}"
        outcome.failed[str(job.source)] = line
        shown.say(f"mpcompress: {line}")
