"""Units of the shipped codecs decode to the same symbols for ever and everywhere.

`decode_independently` reads the codec file and the unit with nothing of this project: plain integers and numpy int64.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load as load_safetensors

import mpcompress
from mpcompress.codec import TensorSpec, Unit
from mpcompress.entropy.rans import decode, encode
from mpcompress.registry import load, preset
from mpcompress.transforms.klt_state import read_state
from mpcompress.transforms.klt_symbols import Steps
from mpcompress.transforms.tiling import Layout

GOLDEN = sorted((Path(__file__).resolve().parent / "golden").glob("*.json"))
WEIGHTS = Path(mpcompress.__file__).parent / "weights"


def interpolated(table: np.ndarray, height: int, width: int) -> np.ndarray:
    """Scales of the largest tile (h, w, K) at the frequencies of a smaller one: rows first, each rounded down."""
    out = table.astype(np.int64)
    for axis, side in ((0, height), (1, width)):
        largest = out.shape[axis]
        parts = []
        for frequency in range(side):
            whole, part = divmod(frequency * largest, side)
            low = out.take(whole, axis)
            high = out.take(min(whole + 1, largest - 1), axis)
            parts.append((low * (side - part) + high * part) // side)
        out = np.stack(parts, axis)
    return out


def tile_scales(file: dict, height: int, width: int) -> np.ndarray:
    h, w, _ = file["scale_tile"].shape
    sizes = [(a, b) for a in range(1, h + 1) for b in range(1, w + 1)]
    begin = sum(a * b for a, b in sizes[: sizes.index((height, width))])
    scales = interpolated(file["scale_tile"], height, width)
    scales += file["scale_shift"][begin : begin + height * width].astype(np.int64).reshape(height, width, 1)
    scales[0, 0] = file["scale_dc"][height - 1, width - 1]
    return scales.reshape(height * width, -1)


def sides(side: int, largest: int) -> list[int]:
    count = (side + largest - 1) // largest
    return [side // count + (1 if number < side % count else 0) for number in range(count)]


def rans_decode(data: bytes, rows: list[int], tables: list[list[int]], offsets: list[int]) -> list[int]:
    state, at, symbols = int.from_bytes(data[:4], "little"), 4, []

    def take(start: int, freq: int) -> None:
        nonlocal state, at
        state = freq * (state >> 16) + (state & 0xFFFF) - start
        if state < 1 << 16:
            state = state << 16 | int.from_bytes(data[at : at + 2], "little")
            at += 2

    def bits(count: int) -> int:
        value = 0
        while count:
            piece = min(count, 8)
            slot = (state & 0xFFFF) >> (16 - piece)
            take(slot << (16 - piece), 1 << (16 - piece))
            value, count = value << piece | slot, count - piece
        return value

    for row in rows:
        ends = tables[row]
        index = int(np.searchsorted(ends, state & 0xFFFF, side="right"))
        start = ends[index - 1] if index else 0
        take(start, ends[index] - start)
        if index < len(ends) - 1:
            symbols.append(offsets[row] + index)
            continue
        above, length = bits(1), 0
        while not bits(1):
            length += 1
        distance = (1 << length | bits(length)) - 1
        symbols.append(offsets[row] + len(ends) - 1 + distance if above else offsets[row] - 1 - distance)
    assert (state, at) == (1 << 16, len(data))
    return symbols


def decode_independently(
    codec_id: str, payload: bytes, pstate: dict, shape: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Symbols, and h_hat in float64."""
    raw = (WEIGHTS / f"{codec_id}.safetensors").read_bytes()
    file = load_safetensors(raw)
    header = json.loads(json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["__metadata__"]["mpcompress"])
    prefix = pstate.get("prefix_tokens", len(file["prefix_mean"]))
    width = pstate.get("token_width", header["token_res"][1])
    height = (shape[0] - prefix) // width
    step = header["base_log2"] + pstate["qp_eighths"]
    prefix_step = step + pstate.get("prefix_qp_offset_eighths", header["prefix_qp_offset_eighths"])
    known = file["scale_prefix"].astype(np.int64)[:prefix]
    unknown = np.repeat(file["scale_dc"][:1, 0].astype(np.int64), prefix - len(known), axis=0)
    blocks = [(b, a) for b in sides(height, header["tile"][0]) for a in sides(width, header["tile"][1])]
    levels = [np.concatenate([known, unknown]) - prefix_step] + [tile_scales(file, *block) - step for block in blocks]
    level = np.concatenate(levels) + pstate.get("gain_eighths", 0) - header["row_cutoff"]

    ends, tables = 0, []
    for length in file["table_lengths"]:
        tables.append(np.cumsum(file["table_freqs"][ends : ends + length].astype(np.int64)).tolist())
        ends += length
    coded = level >= 0
    rows = np.minimum(level[coded] >> header["row_shift"], len(tables) - 1)
    symbols = np.array(rans_decode(payload, rows.tolist(), tables, file["table_offsets"].tolist()))

    column = np.minimum(np.abs(symbols), file["centroid"].shape[1]) - 1
    shrink = np.where(symbols == 0, 0, file["centroid"].astype(np.float64)[rows, column])
    coefficients = np.zeros(level.shape)
    coefficients[coded] = symbols - np.sign(symbols) * shrink
    coefficients[:prefix] *= 2.0 ** (prefix_step / 48)
    coefficients[prefix:] *= 2.0 ** (step / 48)
    return symbols, synthesise(file, coefficients, prefix, (height, width), header["tile"])


def synthesise(file: dict, coefficients: np.ndarray, prefix: int, grid: tuple, tile: list) -> np.ndarray:
    def cosines(n: int) -> np.ndarray:
        matrix = np.cos(np.pi * np.outer(np.arange(n), 2 * np.arange(n) + 1) / (2 * n)) * np.sqrt(2 / n)
        matrix[0] /= np.sqrt(2)
        return matrix

    tokens = np.zeros((*grid, coefficients.shape[1]))
    begin, top = prefix, 0
    for b in sides(grid[0], tile[0]):
        left = 0
        for a in sides(grid[1], tile[1]):
            block = coefficients[begin : begin + a * b].reshape(b, a, -1)
            tokens[top : top + b, left : left + a] = np.einsum("uy,vx,uvk->yxk", cosines(b), cosines(a), block)
            begin, left = begin + a * b, left + a
        top += b
    components = np.concatenate([coefficients[:prefix], tokens.reshape(-1, coefficients.shape[1])])
    out = components @ file["basis"].astype(np.float64)
    mean = np.repeat(file["mean"][None].astype(np.float64), len(out), axis=0)
    known = min(prefix, len(file["prefix_mean"]))
    mean[:known] = file["prefix_mean"][:known]
    return out + mean


def rows_of(codec, unit: Unit) -> np.ndarray:
    state, _ = read_state(codec.model, unit)
    layout = Layout(state.prefix, state.height, state.width, codec.model.tile)
    steps = Steps.of(codec.model, state.qp_eighths, state.prefix_offset_eighths, state.gain_eighths)
    return codec._planner.plan(layout, steps).rows


@pytest.fixture(params=GOLDEN, ids=lambda path: path.stem)
def golden(request):
    path = request.param
    known = json.loads(path.read_text(encoding="utf-8"))
    codec_id = next(name for name in ("block6", "final") if f"vits14-{name}-" in path.name)
    codec = load(preset(f"klt-imgfocus-vits14-{codec_id}"))
    spec = TensorSpec(name="h", dtype="float16", shape=tuple(known["shape"]))
    unit = Unit(strings=[path.with_suffix(".bin").read_bytes()], pstate=known["pstate"], specs=(spec,))
    return codec, unit, known, np.load(path.with_suffix(".npz"))


def test_there_are_golden_units():
    assert len(GOLDEN) == 6


def test_golden_units_decode_to_their_symbols(golden):
    codec, unit, known, arrays = golden
    assert codec.fingerprint.hex() == known["fingerprint"]
    assert np.array_equal(decode(unit.strings[0], rows_of(codec, unit), codec.model.tables), arrays["symbols"])


def test_golden_symbols_give_the_exact_bytes(golden):
    codec, unit, _, arrays = golden
    assert encode(arrays["symbols"], rows_of(codec, unit), codec.model.tables) == unit.strings[0]


def test_golden_units_decode_to_their_features(golden):
    codec, unit, _, arrays = golden
    codec.check_unit(unit)
    (out,) = codec.decompress([unit])
    step = 2.0 ** ((codec.model.base_log2 + unit.pstate["qp_eighths"]) / 48)
    # Symbols are exact, floats are not: any machine's may round differently.
    assert np.allclose(out["h_hat"][::9, ::16], arrays["sample"], atol=0.01 * step, rtol=2e-3)


def test_an_independent_decoder_agrees(golden):
    codec, unit, known, arrays = golden
    symbols, h_hat = decode_independently(codec.id, unit.strings[0], known["pstate"], known["shape"])
    assert np.array_equal(symbols, arrays["symbols"])
    (out,) = codec.decompress([unit])
    scale = float(np.abs(h_hat).max())
    assert np.allclose(out["h_hat"], h_hat, atol=1e-3 * scale, rtol=2e-3)


def test_an_independent_decoder_agrees_on_fresh_units(shipped, tools):
    codec, features = shipped
    for qp, tokens, params in ((300, 257, {}), (200, 54, {"token_res": (1, 53)}), (250, 26, {"token_res": (5, 5)})):
        _, unit, out = tools.code(codec, features[3][:tokens].astype(np.float32), qp_eighths=qp, **params)
        shape = list(unit.specs[0].shape)
        symbols, h_hat = decode_independently(codec.id, unit.strings[0], dict(unit.pstate), shape)
        assert np.array_equal(symbols, decode(unit.strings[0], rows_of(codec, unit), codec.model.tables))
        assert np.allclose(out, h_hat, atol=1e-3)
