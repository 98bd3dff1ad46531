"""The results as Markdown and as a bar chart. `python -m bench.report FILE.json` writes both again."""

import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any
from xml.sax.saxutils import escape

Cell = tuple[str, str, int]  # contestant, work, connections

TITLES = {
    "post-keyed": "POST with a key",
    "post": "POST without a key",
    "get": "GET one",
    "list": "list of 20",
    "batch": "batch of 100",
    "confirm": "confirm",
}
DISTURBED = 0.05  # a slot is disturbed if other processes use a larger share of the machine


class Figures:
    """The slots by contestant, work and connections, each in the order of the rounds."""

    def __init__(self, result: dict[str, Any]) -> None:
        self.titles: dict[str, str] = result["contestants"]
        self.growth: bool = result["growth"]
        self.slots: dict[Cell, list[dict[str, Any]]] = defaultdict(list)
        for slot in result["slots"]:
            self.slots[slot["contestant"], slot["work"], slot["connections"]].append(slot)
        self.reference = next(iter(self.titles))
        self.works = [work for work in TITLES if any(cell[1] == work for cell in self.slots)]
        self.connections = sorted({cell[2] for cell in self.slots})

    def median(self, cell: Cell, name: str) -> float:
        return float(median(slot[name] for slot in self.slots[cell]))

    def ratios(self, cell: Cell, name: str = "rate") -> list[float]:
        """The ratios of the service's figure to the contestant's, by round; for growth, the inverse."""
        ours = self.slots.get((self.reference, *cell[1:]), [])
        pairs = [(a[name], b[name]) for a, b in zip(ours, self.slots[cell])]
        return [theirs / ours if self.growth else ours / theirs for ours, theirs in pairs]


def write(result: dict[str, Any], directory: Path, name: str) -> None:
    """Write NAME.md and NAME.svg."""
    figures = Figures(result)
    (directory / f"{name}.svg").write_text(picture(figures))
    (directory / f"{name}.md").write_text("\n".join(_markdown(figures, result, name)) + "\n")


def _markdown(figures: Figures, result: dict[str, Any], name: str) -> Iterator[str]:
    slots = result["slots"]
    disturbed = sum(slot["foreign"] > DISTURBED for slot in slots)
    yield f"# {'Growth' if figures.growth else 'Comparison'}\n"
    yield (
        f"{1 + slots[-1]['round']} rounds, {result['seconds']} s per slot. {disturbed} of {len(slots)} slots were "
        f"disturbed: other processes used more than {DISTURBED:.0%} of the machine.\n"
    )
    yield f"![requests per second]({name}.svg)\n"
    yield from _ratio_tables(figures)
    for work in figures.works:
        yield from _work_table(figures, work)
    yield "## Machine\n"
    yield from _table(("", ""), result["machine"].items())


def _ratio_tables(figures: Figures) -> Iterator[str]:
    ours = figures.titles[figures.reference]
    what = (
        f"the rate as a multiple of “{ours}”"
        if figures.growth
        else "the service's rate as a multiple of each contestant's"
    )
    for connections in figures.connections:
        yield f"## {connections} connections: {what}\n"
        yield "Median of the rounds' ratios (lowest–highest).\n"
        yield from _ratio_table(figures, connections, "rate")
        if not figures.growth:
            yield "The same for the 99th percentile of latency, where less is better:\n"
            yield from _ratio_table(figures, connections, "p99")


def _ratio_table(figures: Figures, connections: int, name: str) -> Iterator[str]:
    works = [work for work in figures.works if (figures.reference, work, connections) in figures.slots]
    rows = (
        (title, *(_ratio(figures, (contestant, work, connections), name) for work in works))
        for contestant, title in figures.titles.items()
        if contestant != figures.reference
    )
    yield from _table(("", *(TITLES[work] for work in works)), rows)


def _ratio(figures: Figures, cell: Cell, name: str) -> str:
    ratios = figures.ratios(cell, name) if cell in figures.slots else []
    return f"**{median(ratios):.2f}** ({min(ratios):.2f}–{max(ratios):.2f})" if ratios else "–"


def _work_table(figures: Figures, work: str) -> Iterator[str]:
    yield f"## {TITLES[work]}\n"
    yield "Medians; CPU time in µs per request, of the service's processes and of PostgreSQL's.\n"
    head = ("", "connections", "requests/s", "p50 ms", "p99 ms", "service CPU", "database CPU")
    cells = [cell for cell in figures.slots if cell[1] == work]
    order = list(figures.titles)
    cells.sort(key=lambda cell: (cell[2], order.index(cell[0])))
    yield from _table(head, (_figures_row(figures, cell) for cell in cells))


def _figures_row(figures: Figures, cell: Cell) -> tuple[str, ...]:
    rate, p50, p99 = (figures.median(cell, name) for name in ("rate", "p50", "p99"))
    server, database = (figures.median(cell, name) for name in ("server_cpu", "database_cpu"))
    title, connections = figures.titles[cell[0]], str(cell[2])
    return title, connections, f"{rate:,.0f}", f"{p50:.1f}", f"{p99:.1f}", f"{server:,.0f}", f"{database:,.0f}"


def _table(head: Sequence[str], rows: Any) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""


BAR, GAP, LABEL, WIDTH = 16, 6, 250, 860  # pixels
COLOURS = {True: "#2563eb", False: "#94a3b8"}  # ours, the others


def picture(figures: Figures) -> str:
    """A bar chart of requests per second, one panel for each workload, at the middle number of connections."""
    connections = figures.connections[len(figures.connections) // 2]
    parts: list[str] = []
    y = 24
    for work in figures.works:
        cells = [cell for name in figures.titles if (cell := (name, work, connections)) in figures.slots]
        if not cells:
            continue
        parts.append(f'<text x="0" y="{y}" font-weight="bold">{TITLES[work]}, {connections} connections</text>')
        rates = {cell: figures.median(cell, "rate") for cell in cells}
        for cell in cells:
            y += BAR + GAP
            parts += _bar(figures, cell, y, rates[cell], max(rates.values()))
        y += 2 * BAR + GAP
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" font-family="sans-serif" font-size="13">\n'
        '<title>Requests per second, medians</title>\n<rect width="100%" height="100%" fill="white"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _bar(figures: Figures, cell: Cell, y: int, rate: float, largest: float) -> Iterator[str]:
    length = max(1, round((WIDTH - LABEL - 90) * rate / largest))
    colour = COLOURS[cell[0] == figures.reference or figures.growth]
    yield f'<text x="{LABEL - 8}" y="{y}" text-anchor="end">{escape(figures.titles[cell[0]])}</text>'
    yield f'<rect x="{LABEL}" y="{y - BAR + 4}" width="{length}" height="{BAR}" fill="{colour}"/>'
    yield f'<text x="{LABEL + length + 6}" y="{y}">{rate:,.0f}</text>'


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        file = Path(argument)
        write(json.loads(file.read_text()), file.parent, file.stem)
