"""What earlier calls have done, and how: a record beside the results, which `--resume` reads.

A result alone does not say how it was made: most parameters are in no .mpc file, and a file's age is not its content.
"""

from __future__ import annotations

import functools
import hashlib
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mpcompress_client.cli.sources import PIPE, Job

NAME = ".mpcompress-resume.jsonl"


class Record:
    """The results in one folder and below: their inputs' size and age, their parameters, their content.

    Args:
        folder: where results go.
        parameters: what results depend on besides their inputs; JSON-able.
    """

    def __init__(self, folder: Path, parameters: Mapping[str, Any]) -> None:
        self._folder = folder
        canonical = json.dumps(parameters, sort_keys=True, default=str)
        self._made = hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def note(self, job: Job, data: bytes) -> None:
        """Notes a result before it is written: what is noted and not there is done again, never the reverse."""
        if str(job.output) == PIPE or str(job.source) == PIPE:
            return
        line = json.dumps({"output": self._name(job), "of": self._of(job), "crc32": zlib.crc32(data)})
        self._folder.mkdir(exist_ok=True)
        with (self._folder / NAME).open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def is_done(self, job: Job) -> bool:
        """Whether the result is there, whole, of this very input and with these parameters. Raises OSError."""
        noted = self._noted.get(self._name(job), {})
        if str(job.source) == PIPE or not job.output.is_file() or noted.get("of") != self._of(job):
            return False
        return bool(noted.get("crc32") == zlib.crc32(job.output.read_bytes()))

    @functools.cached_property
    def _noted(self) -> dict[str, dict[str, Any]]:
        """The last note about each result, as it was before this call."""
        path = self._folder / NAME
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
        found: dict[str, dict[str, Any]] = {}
        for line in lines:
            try:
                note = json.loads(line)
                found[str(note["output"])] = note
            except (ValueError, KeyError, TypeError):
                # Half a line, of a machine that went down: that result is done again.
                continue
        return found

    def _name(self, job: Job) -> str:
        return job.output.relative_to(self._folder).as_posix()

    def _of(self, job: Job) -> list[Any]:
        stat = job.source.stat()
        return [self._made, stat.st_size, stat.st_mtime_ns]
