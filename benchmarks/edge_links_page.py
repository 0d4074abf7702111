"""What edge_links.py measured, as the tables and the figure of docs/edge.md.

python benchmarks/edge_links_page.py              writes them anew from benchmarks/edge_links.json
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "edge_links.json"
PAGE, FIGURE = ROOT / "docs" / "edge.md", ROOT / "docs" / "edge_links.png"
_BEGIN, _END = "<!-- written by benchmarks/edge_links.py -->\n\n", "<!-- end -->\n"


def main() -> None:
    """Writes page and figure."""
    result = json.loads(RESULT.read_text(encoding="utf-8"))
    write_page(result)
    plot(result["rows"], FIGURE)


def write_page(result: dict[str, Any]) -> None:
    """Puts the tables in the page's place for them."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not end:
        raise SystemExit(f"{PAGE} has no place for the tables")
    PAGE.write_text(before + _BEGIN + tables(result) + _END + after, encoding="utf-8")


def tables(result: dict[str, Any]) -> str:
    """Both tables and what they were measured on, as Markdown."""
    codecs, rows = result["codecs"], result["rows"]
    lines = [
        f"Measured on {result['machine']}, with a load average of {result['load']:.0f} when it ended.",
        "",
        "| features | codec | qp | bpfp | NMSE | compress, CPU ms | decompress, CPU ms |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for kind, codec in codecs.items():
        cpu = " | ".join(f"{1e3 * codec[f'{name}_cpu_s']:.1f}" for name in ("compress", "decompress"))
        quality = " | ".join(_short(codec[name]) for name in ("bpfp", "nmse"))
        lines.append(f"| {kind} | `{codec['codec']}` | {codec['qp']:g} | {quality} | {cpu} |")
    lines += ["", "| features | link, Mbit/s | way | n | bytes up | bytes down | ms | ms at least |"]
    lines += ["|---|---:|---|---:|---:|---:|---:|---:|"]
    for row in rows:
        shape = "x".join(map(str, row["shape"]))
        sizes = " | ".join(f"{row[f'{way}_bytes']:,.0f}".replace(",", " ") for way in ("up", "down"))
        times = f"{1e3 * row['seconds']:.0f} | {1e3 * least_s(row, codecs[row['features']]):.0f}"
        lines.append(
            f"| {row['features']} {shape} | {row['mbit_per_s']:g} | {row['way']} | {row['n']} | {sizes} | {times} |"
        )
    return "\n".join([*lines, "", *_in_words(rows), ""]) + "\n"


def least_s(row: dict[str, Any], codec: dict[str, Any]) -> float:
    """What bytes and CPU time alone come to, seconds."""
    on_the_link = 8e-6 * (row["up_bytes"] + row["down_bytes"]) / row["mbit_per_s"]
    coding = {
        "fp16": 0.0,
        "edge": codec["compress_cpu_s"] + codec["decompress_cpu_s"],
        "server": codec["compress_cpu_s"],
    }
    return float(on_the_link + coding[row["way"]])


def _in_words(rows: list[dict[str, Any]]) -> list[str]:
    found = {(row["features"], row["mbit_per_s"], row["way"]): row for row in rows}
    lines = []
    for kind in dict.fromkeys(row["features"] for row in rows):
        links = sorted({row["mbit_per_s"] for row in rows if row["features"] == kind})
        plain, edge = (found[kind, links[0], way] for way in ("fp16", "edge"))
        times = [found[kind, link, "fp16"]["seconds"] / found[kind, link, "edge"]["seconds"] for link in links]
        pairs = ", ".join(f"{time:.1f} at {link:g}" for time, link in zip(times, links, strict=True))
        fewer = plain["up_bytes"] / edge["up_bytes"]
        lines.append(
            f"- {kind}: {fewer:.0f} times fewer bytes than fp16. Times faster than fp16, by the link's Mbit/s: {pairs}."
        )
    return lines


def _short(value: float) -> str:
    return re.sub(r"^0", "", f"{value:.3f}")


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Time against link, one panel per kind of features."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    kinds = list(dict.fromkeys(row["features"] for row in rows))
    figure, panels = pyplot.subplots(1, len(kinds), figsize=(4 * len(kinds), 3), layout="constrained", squeeze=False)
    for panel, kind in zip(panels[0], kinds, strict=True):
        for way, marker in (("fp16", "s"), ("server", "^"), ("edge", "o")):
            points = [(r["mbit_per_s"], r["seconds"]) for r in rows if r["features"] == kind and r["way"] == way]
            panel.loglog(*zip(*points, strict=True), marker=marker, label=way)
        shape = next("x".join(map(str, r["shape"])) for r in rows if r["features"] == kind)
        panel.set(title=f"{kind} {shape}", xlabel="link, Mbit/s", ylabel="seconds to be there")
        links = sorted({r["mbit_per_s"] for r in rows})
        panel.set_xticks(links, [f"{x:g}" for x in links], minor=False)
        panel.minorticks_off()
        seconds = [r["seconds"] for r in rows if r["features"] == kind]
        ticks = [x for x in (0.01, 0.03, 0.1, 0.3, 1, 3, 10) if min(seconds) / 1.5 <= x <= max(seconds) * 1.5]
        panel.set_yticks(ticks, [f"{x:g}" for x in ticks])
        panel.grid(alpha=0.3)
    panels[0][0].legend()
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    main()
