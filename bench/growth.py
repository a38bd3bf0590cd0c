"""Write the figures of bench.search as a table and a plot of docs/performance.md."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

MARKS = ("<!-- bench.search -->\n", "<!-- /bench.search -->\n")


@dataclass
class Result:
    """The figures of one size. Times: milliseconds (median, 95th percentile)."""

    chunks: int
    real: int
    times: dict[str, tuple[float, float]] = field(default_factory=dict)
    a_second: dict[str, float] = field(default_factory=dict)  # searches or stored chunks per second
    shares: dict[str, float] = field(default_factory=dict)  # recall@10, overlap@10


def lines(results: Sequence[Result]) -> list[str]:
    """Return a Markdown table: a row for each figure, a column for each size."""
    rows = [
        ["", *(f"{r.chunks:,} chunks" + (f" ({r.real:,} real)" if r.real < r.chunks else "") for r in results)],
        ["---"] * (len(results) + 1),
    ]
    for name in dict.fromkeys(name for r in results for name in r.times):
        cells = []
        for r in results:
            (median, late), (bare, bare_late) = r.times[name], r.times["bare HNSW"]
            ratio = f" (×{median / bare:.1f} / ×{late / bare_late:.1f})" if name in ("hybrid", "textbook") else ""
            cells.append(f"{median:.2f} / {late:.2f} ms{ratio}")
        rows.append([f"{name}: median / 95 %", *cells])
    for name in dict.fromkeys(name for r in results for name in r.a_second):
        cells = []
        for r in results:
            other = r.a_second.get(name.replace("hybrid", "textbook")) if name.startswith("hybrid") else None
            ratio = f" (×{r.a_second[name] / other:.1f} of the textbook's)" if other else ""
            cells.append(f"{r.a_second[name]:,.0f}{ratio}" if name in r.a_second else "")
        rows.append([f"{name}: a second", *cells])
    for name in dict.fromkeys(name for r in results for name in r.shares):
        rows.append([name, *(f"{r.shares[name]:.3f}" if name in r.shares else "" for r in results)])
    return [f"| {' | '.join(row)} |" for row in rows]


def plot(results: Sequence[Result]) -> str:
    """Plot the median and (dashed) the 95th percentile of three searches by chunks, as SVG, on logarithmic axes."""
    colours = {"bare HNSW": "#6b7280", "hybrid": "#2563eb", "textbook": "#dc2626"}
    values = [v for r in results for name in colours for v in r.times[name]]
    low, high = np.floor(np.log10(min(values))), np.ceil(np.log10(max(values)))
    first, last = np.log10(results[0].chunks), np.log10(results[-1].chunks)

    def x(chunks: float) -> float:
        return float(60 + 400 * (np.log10(chunks) - first) / max(last - first, 1e-9))

    def y(ms: float) -> float:
        return float(250 - 220 * (np.log10(ms) - low) / (high - low))

    parts = [
        f'<line x1="60" x2="460" y1="{y(10**e):.0f}" y2="{y(10**e):.0f}" stroke="#d1d5db"/>'
        f'<text x="54" y="{y(10**e) + 4:.0f}" text-anchor="end">{10**e:g} ms</text>'
        for e in np.arange(low, high + 1)
    ]
    parts += [f'<text x="{x(r.chunks):.0f}" y="268" text-anchor="middle">{r.chunks:,} chunks</text>' for r in results]
    for n, (name, colour) in enumerate(colours.items()):
        for which, dash in ((0, ""), (1, ' stroke-dasharray="5 4"')):
            points = " ".join(f"{x(r.chunks):.0f},{y(r.times[name][which]):.0f}" for r in results)
            parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
        parts.append(f'<text x="480" y="{40 + 18 * n}" fill="{colour}">{name}</text>')
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 600 280" font-family="sans-serif" font-size="12" '
        f'fill="#374151"><rect width="600" height="280" fill="white"/>{"".join(parts)}</svg>\n'
    )


def write(table: Sequence[str], drawing: str, page: Path) -> None:
    """Write the table between the marks of the page (at its end if it has none), and the plot beside the page."""
    text = page.read_text()
    if MARKS[0] not in text:
        text += f"\n## Searching as an index grows\n\n{MARKS[0]}{MARKS[1]}"
    before, rest = text.split(MARKS[0])
    note = (
        "`make bench-search`, one run. For each question, the fastest of three rounds counts. In brackets: the ratio\n"
        "to bare vector search. Textbook: OR query, `ts_rank_cd`, reciprocal rank fusion. Dashed: 95th percentile.\n"
    )
    body = "\n".join([note, *table, "", f"![Milliseconds of a search by the number of chunks]({page.stem}.svg)", ""])
    page.write_text(f"{before}{MARKS[0]}{body}{MARKS[1]}{rest.split(MARKS[1])[1]}")
    page.with_suffix(".svg").write_text(drawing)
