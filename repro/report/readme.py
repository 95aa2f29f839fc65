"""README's tables, written from the records."""

from __future__ import annotations

from pathlib import Path

from repro.protocol import PAPER, Protocol
from repro.records.benchmark import measured, read_benchmark, required
from repro.records.own import known_protocols
from repro.records.store import walk
from repro.records.tables import Records, as_markdown, records_of
from repro.records.verdict import row_of

BEGIN, END = "<!-- tables: written by repro.report, do not edit -->", "<!-- end of tables -->"


def read_runs(folders: list[Path]) -> list[tuple[Protocol, Records]]:
    """Reads every record below folders, by protocol; a view comes with the records that it shows.

    Raises:
        ValueError: A record or a kept protocol is damaged, or a record was not made with the protocol as it is now.
    """
    protocols, _, not_used = known_protocols(folders)
    for path, reason in not_used:
        raise ValueError(f"{path}: must be a protocol that a table can show; got {reason}; remove it")
    every: dict[str, Records] = {}
    for path, record, _, reason in walk(folders):
        try:
            if reason:
                raise ValueError(reason)
            row_of(record, protocols)
        except ValueError as error:
            raise ValueError(f"{path}: must be a record that a table can show; got {error}; remove it") from error
        every.setdefault(record["table"], {}).setdefault(record["row"], []).append(record)
    tables = []
    for name in sorted(protocols.keys() & {*every, *PAPER}):
        records = records_of(protocols[name], every)
        if any(row.id in records for row in protocols[name].rows):
            tables.append((protocols[name], records))
    return tables


def benchmark_table(path: Path) -> str:
    """Renders a benchmark's targets, reached or not, with the medians behind each.

    Raises:
        ValueError: The file is damaged or of another format.
    """
    try:
        document = read_benchmark(path)
    except ValueError as error:
        raise ValueError(f"{path}: must be a benchmark that a table can show; got {error}; remove it") from error
    conditions = document["conditions"]
    medians = {(r["op"], r["case"], r["direction"], r["contestant"]): r["median_ms"] for r in document["results"]}
    least = {
        (r["op"], r["case"], r["direction"]): r.get("least_ms")
        for r in document["results"]
        if r["contestant"] == "ours"
    }
    lines = [
        f"**Kernels** on {conditions['device_name']}, {conditions['threads']} threads, torch {conditions['versions']['torch']}, {conditions['dtype']}; medians in ms",
        "",
        f"*{path.name}; eager is PyTorch on contiguous (NCHW) or channels_last maps; ratios are of medians in one run; least: to allocate our results and write each once, from an input of its size where there is one, and to take the exponentials that they need*",
        "",
        "| op | case | direction | eager | eager, channels_last | torch.compile | ours | least | of | must | measured |",
        "| :-- | :-- | :-- | --: | --: | --: | --: | --: | :-- | :-- | :-- |",
    ]
    never_slower = [t for t in document["targets"] if t["what"] == "never slower"]
    for target in document["targets"]:
        key = target["op"], target["case"], target["direction"]
        times = [medians.get((*key, name)) for name in ("eager-nchw", "eager", "compile", "ours")]
        times.append(least.get(key))
        if target["what"] == "never slower" and target["reached"]:
            continue
        cells = [*key, *("-" if t is None else f"{t:.2f}" for t in times), target["what"], required(target)]
        lines.append(f"| {' | '.join(cells)} | {measured(target)}{'' if target['reached'] else ', **missed**'} |")
    slower = sum(not t["reached"] for t in never_slower)
    lines += [
        "",
        f"In {len(never_slower) - slower} of {len(never_slower)} cases and directions ours is at least as fast as the faster of the two eager layouts.",
    ]
    return "\n".join(lines) + "\n"


def tables_block(folders: list[Path]) -> str:
    """Renders README's block of tables."""
    parts = [as_markdown(protocol, records) for protocol, records in read_runs(folders)]
    parts += [benchmark_table(path) for folder in folders for path in sorted(folder.glob("bench/*.json"))]
    return "\n".join([BEGIN, "", *(parts or ["Nothing has been measured yet.\n"]), END])


def replace_block(text: str, block: str) -> str:
    """Puts a block of tables in the place of the one in a text.

    Raises:
        ValueError: The text has no such place.
    """
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(
            f"repro.report: the file must hold the lines {BEGIN!r} and {END!r}; got none; add them where the tables shall stand"
        )
    return head + block + tail
