"""A second decoder of family `klt`, written from docs/format.md: it uses nothing of this project but the codec file.

Symbols in Python integers, features in float64 with the polar factors of the bases computed by an SVD. Slow.
"""

import json
import math

import numpy as np
from safetensors.numpy import load as load_safetensors

LOG2 = [0] + [round(48 * math.log2(n)) for n in range(1, 4096)]


class Reader:
    """rANS: one symbol after the other."""

    def __init__(self, data, file, short):
        self.data, self.short = data, short
        self.at = min(len(data), 4)
        if short and len(data) > 2:
            self.at = 4 - len(data) % 2
        self.state = int.from_bytes(data[: self.at], "big" if short else "little")
        if short:
            assert data[:1] != b"\0"
            if self.at == len(data) < 3:
                self.state = (self.state + 16384) % 65536
        ends = np.cumsum(file["table_lengths"])
        self.tables = [np.cumsum(part.astype(np.int64)).tolist() for part in np.split(file["table_freqs"], ends[:-1])]
        self.offsets = file["table_offsets"].tolist()

    def take(self, start, freq):
        last = self.state
        self.state = freq * (last >> 16) + (last & 0xFFFF) - start
        if self.state >= 1 << 16:
            return
        if self.at < len(self.data):
            self.state = self.state << 16 | int.from_bytes(self.data[self.at : self.at + 2], "little")
            self.at += 2
            return
        assert self.short
        if last < 1 << 16:
            self.state = (self.state << 16) // freq
        else:
            making_way = {(k << 16) // freq for k in range(freq)}
            self.state = [n for n in range(1 << 16) if n not in making_way][self.state - freq]

    def check_end(self):
        assert self.at == len(self.data)
        assert self.state == 1 << 16 or (self.short and 16384 <= self.state < 16640)

    def bits(self, count):
        value = 0
        while count:
            piece = min(count, 8)
            slot = (self.state & 0xFFFF) >> (16 - piece)
            self.take(slot << (16 - piece), 1 << (16 - piece))
            value, count = value << piece | slot, count - piece
        return value

    def symbol(self, table):
        ends, offset = self.tables[table], self.offsets[table]
        index = next(i for i, end in enumerate(ends) if end > self.state & 0xFFFF)
        start = ends[index - 1] if index else 0
        self.take(start, ends[index] - start)
        if index < len(ends) - 1:
            return offset + index
        above, length = self.bits(1), 0
        while not self.bits(1):
            length += 1
        distance = (1 << length | self.bits(length)) - 1
        return offset + len(ends) - 1 + distance if above else offset - 1 - distance


def halved(side):
    return (side + 1) // 2 if side > 1 else 1


def levels_of(height, width):
    """(h, w) before each split, fine to coarse."""
    found = []
    while height > 1 or width > 1:
        found.append((height, width))
        height, width = halved(height), halved(width)
    return found


def rows_of(height, width, prefix, far, known, depth):
    """(kind, the nine neighbours as indices or None) of every row, in order; and the index of detail rows."""
    rows, index = [(0, [None] * 9)], {}
    last_kind = 1 + known + 3 * depth
    for p in range(prefix):
        rows.append((1 + p if p < known else last_kind, [p if p else None] + [None] * 5 + [0, None, None]))
    splits = levels_of(height, width)
    for d in reversed(range(len(splits))):
        h, w = splits[d]
        ph, pw = halved(h), halved(w)
        for o in range(3):
            for i in range(h // 2 if o else ph):
                for j in range(w // 2 if o != 1 else pw):
                    index[d, o, i, j] = len(rows)
                    rows.append(((d, o, i, j), None))
    for place, ((d, o, i, j), number) in enumerate(sorted(index.items(), key=lambda item: item[1])):
        near = [(d, o, i, j - 1), (d, o, i - 1, j), (d, o, i - 1, j - 1), (d, o, i - 1, j + 1)]
        node = [(d, 0, i, j) if o > 0 else None, (d, 1, i, j) if o > 1 else None]
        up = [(d + 1, k, i // 2 if splits[d][0] > 2 else i, j // 2 if splits[d][1] > 2 else j) for k in range(3)]
        found = [index.get(key) for key in near + node + up]
        if d + 1 == len(splits):
            found[6] = 0
        assert number == 1 + prefix + place
        rows[number] = (1 + known + 3 * min(d, depth - 1) + o, found)
    for number in range(far):
        rows.append((last_kind, [len(rows) - 1 if number else None] + [None] * 8))
    return rows, index


def contexts(file, header, lstep, offset, gain):
    """level, weights and calibrated class of (kind, k)."""
    base = file["base"].astype(int)
    kinds, components = base.shape
    prefix = len(file["predictor"])
    level, weight, own = np.zeros_like(base), np.zeros((kinds, 7, components), int), np.zeros_like(base)
    for kind in range(kinds):
        for k in range(components):
            above = base[kind, k] - lstep - (offset if 1 <= kind <= prefix else 0) + gain - header["cutoff"]
            bucket = min(max(above // 48 + 2, 0), 13)
            octave = min((k + 1).bit_length() - 1, 15)
            w = [
                int(file["weight_kind"][kind, f])
                + int(file["weight_level"][bucket, f])
                + int(file["weight_component"][octave, f])
                for f in range(8)
            ]
            level[kind, k] = min(max(above + w[7], -8000), 8000)
            weight[kind, :, k] = [min(max(value, -2047), 2047) for value in w[:7]]
            own[kind, k] = min(max(above >> 3, 0), 95)
    return level, weight, own


def mean(said, worth):
    return min(max((said << 6) // (worth + 64), -2046), 2046)


def read_symbols(file, header, payload, rows, lstep, offset, gain):
    """q and class (rows, K); class -1 where nothing is coded."""
    level, weight, own = contexts(file, header, lstep, offset, gain)
    components = level.shape[1]
    reader = Reader(payload, file, header["bitstream_version"] >= 4)
    evidence, worth = file["evidence"].astype(int).tolist(), file["worth"].astype(int).tolist()
    q, classes = np.zeros((len(rows), components), int), np.full((len(rows), components), -1)
    said, sums, worths = np.zeros((len(rows), components), int), [0] * len(rows), [0] * len(rows)
    total = [0, 0]
    for row, (kind, near) in enumerate(rows):

        def group(slots, near=near):
            found = [near[slot] for slot in slots if near[slot] is not None]
            return mean(sum(sums[n] for n in found), sum(worths[n] for n in found))

        features = [group(range(4)), group((4, 5)), group((6, 7, 8)), mean(*total)]
        pairs = [
            sum((said[near[s]] for s in slots if near[s] is not None), np.zeros(components, int))
            for slots in ((0, 1), (4, 5))
        ]
        part = (level[kind] << 8) + sum(weight[kind, f] * features[f] for f in range(4))
        part = (part + weight[kind, 4] * pairs[0] + weight[kind, 5] * pairs[1]).tolist()
        coded = np.flatnonzero(level[kind] >= 0)
        run = [0, 0]
        for begin in range(0, int(coded[-1]) + 1 if coded.size else 0, 16):
            feature = mean(*run)
            run = [run[0] - (run[0] >> 2), run[1] - (run[1] >> 2)]
            for k in range(begin, min(begin + 16, int(coded[-1]) + 1)):
                table = min((part[k] + int(weight[kind, 6, k]) * feature) >> 11, 95)
                if table < 0:
                    continue
                value = reader.symbol(table)
                mine, size = own[kind, k], abs(value)
                if size < 17:
                    e = evidence[mine][size]
                else:
                    e = min(max(LOG2[min(size, 4095)] - (int(level[kind, k]) + header["cutoff"]), -1023), 1023)
                q[row, k], classes[row, k], said[row, k] = value, table, e
                for sum_ in (run, total):
                    sum_[0] += e
                    sum_[1] += worth[mine]
                sums[row] += e
                worths[row] += worth[mine]
    reader.check_end()
    return q, classes


def decode(raw, payload, pstate, shape):
    """q, classes (rows, K) and features (L, C) in float64, of a codec of one group of channels and a (L, C) tensor."""
    file = load_safetensors(raw)
    header = json.loads(json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["__metadata__"]["mpcompress"])
    known, depth = len(file["predictor"]), len(file["slope"])
    prefix = pstate.get("prefix_tokens", known)
    patches = shape[0] - prefix
    width = pstate.get("token_width", header["token_res"][1] if header["token_res"] else patches)
    height = patches // width
    far = np.cumsum(np.array(pstate.get("far_tokens", []), int) + 1) - 1
    lstep = header["base_log2"] + pstate["qp_eighths"]
    offset = pstate.get("prefix_qp_offset_eighths", header["prefix_qp_offset_eighths"])
    rows, index = rows_of(height, width, prefix, len(far), known, depth)
    q, classes = read_symbols(file, header, payload, rows, lstep, offset, pstate.get("gain_eighths", 0))
    size = np.minimum(abs(q), 16)
    value = np.sign(q) * (file["centroid"].astype(float)[np.maximum(classes, 0), size] + abs(q) - size)
    field = np.zeros(q.shape)
    for row, (kind, near) in enumerate(rows):
        head = 1 <= row <= prefix and row <= known
        field[row] = value[row] * 2.0 ** ((lstep + (offset if head else 0)) / 48)
        if row > prefix and row < len(rows) - len(far):
            for weight, other in zip(file["feedback"][kind].astype(float), near[:2], strict=True):
                field[row] += weight * field[other] if other is not None else 0
    bases = []
    for rows_ in file["basis"].astype(float):
        u, _, v = np.linalg.svd(rows_ / np.linalg.norm(rows_, axis=1, keepdims=True), full_matrices=False)
        bases.append(u @ v)
    features = [field[row] @ bases[file["slot"][kind]] for row, (kind, _) in enumerate(rows)]
    out = np.zeros(shape)
    means = file["mean"].astype(float)
    for p in range(prefix):
        out[p] = features[1 + p] + (means[p] if p < known else file["far_mean"])
        if p < known:
            predictor = file["predictor"][p] * file["predictor_scale"][p][:, None].astype(float)
            out[p] += field[0] @ predictor
    grid = pyramid(file, features, index, height, width)
    if "filter_inner" in file and 0 <= lstep - header["filter_start"] <= 384:
        head = out[0] - means[0] if prefix and known else None
        strength = 1 + pstate.get("filter_strength_eighths", 0) / 8
        grid = grid + strength * correction(file, grid, head, (lstep - header["filter_start"]) / 192)
    out[prefix:] = grid.reshape(patches, -1)
    gh, gw = header["mean_grid"]
    for i in range(height):
        for j in range(width):
            out[prefix + i * width + j] += means[known + (i * gh // height) * gw + j * gw // width]
    for number, token in enumerate(far):
        out[prefix + token] = features[len(rows) - len(far) + number] + file["far_mean"]
    return q, classes, out


def correction(file, grid, head, t):
    """What the filter adds to a grid (h, w, C)."""

    def rows(name):
        return file[f"filter_{name}"] * file[f"filter_{name}_scale"][..., None].astype(float)

    height, width, _ = grid.shape
    units = grid @ rows("inner").T
    near = file["filter_near"].astype(float)
    powers = np.array([1, min(t, 1), min(t, 1) ** 2])
    context = rows("context")[0] @ grid.mean(axis=(0, 1))
    if head is not None and len(file["filter_context"]) > 1:
        context = context + rows("context")[1] @ head
    hidden = np.zeros(units.shape)
    for i in range(height):
        for j in range(width):
            for y in (-1, 0, 1):
                for x in (-1, 0, 1):
                    if 0 <= i + y < height and 0 <= j + x < width:
                        hidden[i, j] += near[:, 1 + y, 1 + x] * units[i + y, j + x]
    hidden = np.maximum(hidden + context + file["filter_bias"].astype(float) @ powers, 0)
    return (hidden * (file["filter_gain"].astype(float) @ powers)) @ rows("outer")


def pyramid(file, features, index, height, width):
    slope = file["slope"].astype(float)
    splits = levels_of(height, width)
    tokens = [(np.ones(height, int), np.ones(width, int))]
    for _ in splits:
        tokens.append(
            tuple(side if side.size == 1 else np.add.reduceat(side, range(0, side.size, 2)) for side in tokens[-1])
        )
    low = features[0][None, None]
    for d in reversed(range(len(splits))):
        (h, w), (y, x), (py, px) = splits[d], tokens[d], tokens[d + 1]
        norm = np.sqrt(py[:, None] * px)
        detail = np.zeros((3, py.size, px.size, low.shape[2]))
        for (level, o, i, j), row in index.items():
            if level == d:
                detail[o, i, j] = features[row]
        across, down = slope[min(d, len(slope) - 1)] if len(slope) else (0, 0)
        average = low / norm[..., None]
        wide = np.pad(average, ((1, 1), (1, 1), (0, 0)), mode="edge")
        detail[0] += across * (wide[1:-1, :-2] - wide[1:-1, 2:]) * norm[..., None]
        detail[1] += down * (wide[:-2, 1:-1] - wide[2:, 1:-1]) * norm[..., None]
        out = np.zeros((h, w, low.shape[2]))
        for i in range(py.size):
            for j in range(px.size):
                two_y, two_x = h > 1 and 2 * i + 1 < h, w > 1 and 2 * j + 1 < w
                a, b = (np.sqrt(y[2 * i] / py[i]), np.sqrt(y[2 * i + 1] / py[i])) if two_y else (1, 0)
                c, e = (np.sqrt(x[2 * j] / px[j]), np.sqrt(x[2 * j + 1] / px[j])) if two_x else (1, 0)
                d0, d1, d2 = (part[i, j] for part in detail)
                d0, d1, d2 = (d0 if two_x else 0), (d1 if two_y else 0), (d2 if two_x and two_y else 0)
                for dy in range(1 + two_y):
                    # top = a low + b high, bottom = b low - a high; the same across.
                    left = (a, b)[dy] * low[i, j] + (b, -a)[dy] * d1
                    right = (a, b)[dy] * d0 + (b, -a)[dy] * d2
                    for dx in range(1 + two_x):
                        target = (2 * i + dy if h > 1 else 0), (2 * j + dx if w > 1 else 0)
                        out[target] = (c, e)[dx] * left + (e, -c)[dx] * right
        low = out
    return low
