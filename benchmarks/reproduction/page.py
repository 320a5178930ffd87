"""docs/reproduction.md, from the records alone."""

from __future__ import annotations

from pathlib import Path
from statistics import mean, stdev
from textwrap import wrap

from benchmarks.reproduction.results import Record, Results
from benchmarks.reproduction.rows import PROTOCOLS, Group, Paper, Protocol, Row, groups
from benchmarks.training import table

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reproduction.md"

_WIDTH = 120

HEAD = """# Reproduction

What the literature reached, and what this repository reaches at the same task. Made by `make reproduce`
(`python -m benchmarks.reproduction table`) from the records in `benchmarks/reproduction/results/`, one file a row; no
figure here is typed. `python -m benchmarks.reproduction list` says what was run, `run ROW --seeds 0 1` runs more.

- **By the paper's protocol** keeps the paper's network, objective and way of fine-tuning; where it departs, the text
  above the table says so. **Ours** may use whatever helps. What each trial was run with stands in its record.
- Figures are of the test rows. Epochs and settings are chosen on validation rows; rows of our column that fell short of
  what is wanted were run again for more epochs, and the last run is shown. Mean over seeds ± their standard deviation,
  with the number of seeds in brackets; one seed has no spread.
- The ± of a paper's error rate is half the 95 % interval of a proportion over its test rows. A difference smaller than
  that says nothing, ours included; what is wanted of our column is at most the lower end.
- Times are the wall time of one trial on a machine shared with other work or other trials, pretraining included. On a
  GPU matrices are multiplied in TensorFloat-32.
"""


def text(results: Results) -> str:
    parts = [HEAD.strip(), summary(results)]
    for group in groups():
        parts += section(group, results)
    return "\n\n".join(parts) + "\n"


def summary(results: Results) -> str:
    """How many trials there are a record of, and which are missing."""
    missing, count = [], 0
    for group in groups():
        for row in group.rows:
            found = results.of(row.name)
            count += len(row.trials)
            missing += [f"`{row.name}` ({name})" for name in row.trials if not of(found, name)]
    if not missing:
        return f"Each of the {count} trials was run."
    return fill(f"Of {count} trials, {count - len(missing)} were run. Not run: {', '.join(missing)}.")


def section(group: Group, results: Results) -> list[str]:
    records = {row.name: results.of(row.name) for row in group.rows}
    protocols = [name for name in ("paper", "ours") if any(name in row.trials for row in group.rows)]
    titles = {"paper": "by the paper's protocol", "ours": "ours"}
    head = [group.unit, "published", *(titles[name] for name in protocols), "wanted", "reached", "minutes"]
    lines = []
    for row in group.rows:
        cells = [column(row, of(records[row.name], name)) if name in row.trials else "" for name in protocols]
        lines.append(
            [
                row.title,
                published(row.paper, row.form),
                *cells,
                *goals(row, records[row.name]),
                minutes(records[row.name]),
            ]
        )
    parts = [f"## {group.title}", fill(group.text), table(head, lines)]
    parts += order(group, records)
    parts += more(group, records)
    parts += commands(group, records)
    return parts


def fill(paragraph: str) -> str:
    return "\n".join(wrap(paragraph, _WIDTH, break_long_words=False, break_on_hyphens=False))


def of(records: list[Record], protocol: str) -> list[Record]:
    return [record for record in records if record.protocol == protocol]


def values(row: Row, records: list[Record]) -> list[float]:
    return [record.figures[row.metric] for record in records]


def published(paper: Paper, form: str) -> str:
    if paper.value is None:
        return paper.note
    figure = f"{paper.value:{form}}"
    if paper.interval is not None:
        figure += f" ± {paper.interval:{form}}"
    return f"{figure} {paper.note}".strip()


def column(row: Row, records: list[Record]) -> str:
    """Mean and spread over the seeds."""
    found = values(row, records)
    if not found:
        return "not run"
    return spread(found, row.form)


def spread(found: list[float], form: str) -> str:
    if len(found) == 1:
        return f"{found[0]:{form}} (1)"
    return f"{mean(found):{form}} ± {stdev(found):{form}} ({len(found)})"


def goals(row: Row, records: list[Record]) -> tuple[str, str]:
    """What is wanted of each protocol, and whether the mean over the seeds reaches it."""
    words = {"lower": "≤", "higher": "≥"}[row.better]
    wanted, reached = [], []
    for protocol, bound in row.wanted.items():
        found = values(row, of(records, protocol))
        both = f"{protocol}: " if len(row.wanted) > 1 else ""
        wanted.append(f"{both}{words} {bound:{row.form}}")
        if found:
            holds = mean(found) <= bound if row.better == "lower" else mean(found) >= bound
            reached.append(f"{both}{'yes' if holds else '**no**'}")
    return ", ".join(wanted), ", ".join(reached)


def minutes(records: list[Record]) -> str:
    if not records:
        return ""
    return f"{mean(record.seconds for record in records) / 60:.1f}"


def order(group: Group, records: dict[str, list[Record]]) -> list[str]:
    """Whether the rows come out in the order that the paper found, by the means of the paper's protocol."""
    rows = {row.name: row for row in group.rows}
    if not group.wanted_order:
        return []
    protocol: Protocol = "paper"
    found = {name: values(rows[name], of(records[name], protocol)) for name in group.wanted_order}
    if not all(found.values()):
        return []
    means = {name: mean(each) for name, each in found.items()}
    reached = sorted(group.wanted_order, key=lambda name: -means[name])
    holds = reached == list(group.wanted_order)
    titles = " > ".join(rows[name].title for name in reached)
    return [f"Order by the paper's protocol, worst first: {titles}. This is {'' if holds else '**not** '}the paper's."]


def more(group: Group, records: dict[str, list[Record]]) -> list[str]:
    """The other figures of the rows that have some, a line for each protocol."""
    names = list(dict.fromkeys(name for row in group.rows for name in row.more))
    if not names:
        return []
    lines = []
    for row in group.rows:
        for protocol in row.trials:
            found = of(records[row.name], protocol)
            if found:
                cells = [
                    spread([one.figures[name] for one in found], ".4g") if name in found[0].figures else ""
                    for name in names
                ]
                lines.append([f"{row.title}, {protocol}" if len(row.trials) > 1 else row.title, *cells])
    return [table(["further figures", *(name.replace("_", " ") for name in names)], lines)] if lines else []


def commands(group: Group, records: dict[str, list[Record]]) -> list[str]:
    """How the section was run, and on what: as the records say."""
    found = [record for row in group.rows for record in records[row.name]]
    if not found:
        return ["Not run yet."]
    lines = []
    for protocol in PROTOCOLS:
        run = {row.name: of(records[row.name], protocol) for row in group.rows}
        names = " ".join(name for name, each in run.items() if each)
        seeds = " ".join(str(seed) for seed in sorted({record.seed for each in run.values() for record in each}))
        if names:
            lines.append(f"python -m benchmarks.reproduction run {names} --protocol {protocol} --seeds {seeds}")
    hardware = ", and on ".join(sorted({record.hardware for record in found}))
    versions = "; ".join(sorted({record.versions for record in found}))
    dates = sorted({record.date for record in found})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    return ["```\n" + "\n".join(lines) + "\n```", f"{when}; on {hardware}; {versions}."]
