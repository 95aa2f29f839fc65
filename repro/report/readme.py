"""README's tables, written from the records."""

from __future__ import annotations

from pathlib import Path

from repro.protocol import PAPER, PROTOCOLS, Protocol, load_protocol, settings_sha256
from repro.records.store import read_record
from repro.records.tables import Records, as_markdown, records_of
from repro.report.collect import read_benchmark

MEASURED = PROTOCOLS / "measured"
BEGIN, END = "<!-- tables: written by repro.report, do not edit -->", "<!-- end of tables -->"


def read_runs(folders: list[Path]) -> list[tuple[Protocol, Records]]:
    """Reads every record below folders, by protocol; a view comes with the records that it shows.

    Raises:
        ValueError: A record is damaged, or was not made with the protocol as it is now.
    """
    every: dict[str, Records] = {}
    for path in sorted(path for folder in folders for path in folder.glob("*/*/record.json")):
        record = read_record(path)
        protocol = load_protocol(record["table"])
        unchanged = settings_sha256(protocol.row(record["row"]).settings) == record["provenance"]["settings_sha256"]
        if not unchanged and not record["deviates"]:
            raise ValueError(
                f"{path}: must have been made with {protocol.name}.toml as it is; got other settings; measure the row again"
            )
        every.setdefault(record["table"], {}).setdefault(record["row"], []).append(record)
    tables = []
    for name in sorted({*every, *PAPER}):
        protocol = load_protocol(name)
        records = records_of(protocol, every)
        if any(row.id in records for row in protocol.rows):
            tables.append((protocol, records))
    return tables


def benchmark_table(path: Path) -> str:
    """Renders a benchmark's targets, reached or not, with the medians behind each.

    Raises:
        ValueError: The file is damaged or of another format.
    """
    document = read_benchmark(path)
    conditions = document["conditions"]
    medians = {(r["op"], r["case"], r["direction"], r["contestant"]): r["median_ms"] for r in document["results"]}
    lines = [
        f"**Kernels** on {conditions['device_name']}, {conditions['threads']} threads, torch {conditions['versions']['torch']}, {conditions['dtype']}; medians in ms",
        "",
        f"*{path.name}; eager is PyTorch on contiguous (NCHW) or channels_last maps; ratios are of medians in one run*",
        "",
        "| op | case | direction | eager | eager, channels_last | torch.compile | ours | must | measured |",
        "| :-- | :-- | :-- | --: | --: | --: | --: | :-- | :-- |",
    ]
    never_slower = [t for t in document["targets"] if t["what"] == "never slower"]
    for target in document["targets"]:
        key = target["op"], target["case"], target["direction"]
        times = [medians.get((*key, name)) for name in ("eager-nchw", "eager", "compile", "ours")]
        if target["what"] == "time":
            bound, measured = f"≥ {target['required']:g}× eager", f"{target['measured']:.1f}×"
        elif target["what"] == "memory":
            bound, measured = f"extra memory ≤ {target['required']:g} of eager's", f"{target['measured']:.3f}"
        elif target["what"] == "never slower" and not target["reached"]:
            bound, measured = "never slower", f"{target['measured']:.2f}×"
        else:
            continue
        cells = [*key, *("-" if t is None else f"{t:.2f}" for t in times), bound]
        lines.append(f"| {' | '.join(cells)} | {measured}{'' if target['reached'] else ', **missed**'} |")
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
