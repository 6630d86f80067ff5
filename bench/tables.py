"""What was measured, as tables: for a terminal, and for Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from bench.aims import AIMS, Tables
from bench.workload import Figure, Ratio, Row, Table, Workload, over

Cells = list[list[str]]


def cells(workload: Workload, table: Table) -> Cells:
    """The heading and the rows of a workload's table."""
    sizes = {size for _, size in table.samples}
    heading = ["contender", *(["size"] if len(sizes) > 1 else [])]
    heading += [figure.heading for figure in workload.figures]
    heading += [word for ratio in workload.ratios for word in (ratio.heading, "min..max")] + ["rounds"]
    lines = [heading]
    for row in table.samples:
        line = [row[0], *([f"{row[1]:,}"] if len(sizes) > 1 else [])]
        if row in table.problems:
            line += [f"left out: {table.problems[row]}"[:60]]
            lines.append(line + [""] * (len(heading) - len(line)))
            continue
        line += [_figure(table, row, figure) for figure in workload.figures]
        line += [cell for ratio in workload.ratios for cell in _ratio(workload, table, row, ratio)]
        lines.append([*line, str(sum(sample is not None for sample in table.samples[row]))])
    return lines


def _figure(table: Table, row: Row, figure: Figure) -> str:
    values = [value * figure.scale for value in table.values(row, figure.key) if value is not None]
    if not values:
        return "-"
    told = figure.form.format(statistics.median(values))
    if figure.spread and len(values) > 1:
        told += f" ({figure.form.format(min(values))}..{figure.form.format(max(values))})"
    return told


def _ratio(workload: Workload, table: Table, row: Row, ratio: Ratio) -> tuple[str, str]:
    values: Sequence[float] = ()
    if ratio.to:
        values = over(table.values(row, ratio.key), table.values(row, ratio.to))
    elif ratio.base is not None and (base := ratio.base(workload.contenders[row[0]], row[1])) in table.samples:
        assert base is not None
        values = table.ratios(row, base, ratio.key)
    if not values:
        return "-", ""
    return f"{statistics.median(values):.2f}", f"{min(values):.2f}..{max(values):.2f}" if len(values) > 1 else ""


def judged(tables: Tables) -> tuple[Cells, list[str]]:
    """Every aim that was measured; and which are missed."""
    lines, missed = [["", "aim", "bound", "measured", "min..max", ""]], []
    for aim in AIMS:
        verdict = aim.judged(tables)
        if verdict is None:
            continue
        bound = f"{'<=' if aim.at_most else '>='} {aim.bound:g}{aim.unit}"
        spread = f"{verdict.least:.2f}..{verdict.most:.2f}"
        lines.append(
            [aim.workload, aim.what, bound, f"{verdict.median:.2f}", spread, "met" if verdict.met else "MISSED"]
        )
        missed += [] if verdict.met else [f"{aim.workload} {aim.what}"]
    return lines, missed


def plain(lines: Cells) -> str:
    """For a terminal."""
    widths = [max(len(line[n]) for line in lines) for n in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if n < 1 else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def markdown(lines: Cells) -> str:
    """For RESULTS.md."""
    told = ["| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines]
    return "\n".join([told[0], "|---" + "|---:" * (len(lines[0]) - 1) + "|", *told[1:]])
