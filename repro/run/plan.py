"""What to run, in which order, and on which machine: the jobs of one table or of all, each trained once, and their shares."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from repro.protocol import MEAN_IOU, PAPER, Protocol, Row, is_shipped, load_protocol, metric_name
from repro.records.store import read_record, record_path
from repro.records.tables import values_name
from repro.records.verdict import row_value, value_before_crf
from repro.run.stage import stage_of

# A stage is trained once, whatever the seeds of the rows that start from it: they share its weights as they would share a published file.
STAGE_SEED = 1
MOST_SHARES = 10_000  # more machines than any plan has jobs


@dataclass(frozen=True)
class Job:
    """One training: a row of a protocol with a seed.

    stage: Whether other jobs start from its weights.
    """

    protocol: Protocol
    row: Row
    seed: int
    stage: bool = False

    @property
    def key(self) -> tuple[str, str, int]:
        """What tells jobs apart."""
        return self.protocol.name, self.row.id, self.seed

    def __str__(self) -> str:
        return f"{self.protocol.name} {self.row.id}, seed {self.seed}"


class Plan:
    """What a command asks for; what two tables share, and the rows that a view shows, are trained once.

    Args:
        tables: Protocols' names or files.
        row_ids: Of the one table, or empty for all rows that run.
        seeds: Each row is run with each.
        overrides: As --set.

    Attributes:
        seeds: As given.
        tables: The protocols asked for, in order; their tables are printed.
        jobs: Stages first, then seed by seed the rows in the tables' order.

    Raises:
        ValueError: A protocol is wrong, or a row that was asked for does not run.
    """

    def __init__(self, tables: Iterable[str], row_ids: Sequence[str], seeds: Iterable[int], overrides: Sequence[str]):
        self.seeds = list(seeds)
        self._overrides = overrides
        self._protocols: dict[str, Protocol] = {}
        self.tables = [self.protocol(table) for table in tables]
        rows: list[tuple[Protocol, Row]] = []
        for protocol in self.tables:
            chosen = [protocol.row(row_id) for row_id in dict.fromkeys(row_ids)] if row_ids else protocol.rows
            for row in chosen:
                if row.status == "run":
                    rows.append(self.trained(protocol, row))
                elif row_ids:
                    raise ValueError(
                        f"{protocol.name}: --row must name a row that runs; got {row.id}, which is {row.status} ({row.why}); choose another"
                    )
        jobs = [stage for _, row in rows for stage in self._stage_jobs(row)]
        jobs += [Job(protocol, row, seed) for seed in self.seeds for protocol, row in rows]
        unique: dict[tuple[str, str, int], Job] = {}
        for job in jobs:
            unique.setdefault(job.key, job)
        self.jobs = list(unique.values())
        self._check_overrides()

    def _check_overrides(self) -> None:
        """Raises ValueError where an override changes none of the rows: its key is one that only some rows have."""
        changed = {key for protocol in self.tables for key in protocol.overrides}
        known = {f"{s}.{key}" for job in self.jobs for s, table in job.row.settings.items() for key in table}
        for name in sorted(changed - known) if self.jobs else ():
            raise ValueError(
                f"--set: {name} must change a row that has such a key; got none among the rows asked for; give every key that goes with it, or choose other rows"
            )

    def protocol(self, table: str) -> Protocol:
        """Reads a protocol, overrides applied, once."""
        if table not in self._protocols:
            self._protocols[table] = load_protocol(table, self._overrides)
        return self._protocols[table]

    def own(self) -> list[Protocol]:
        """Reads those protocols again that are one's own, as they stand: without overrides."""
        files = [table for table in self._protocols if table.endswith(".toml")]
        return [load_protocol(file) for file in files if not is_shipped(Path(file).stem)]

    def named(self, name: str) -> tuple[Protocol, Row]:
        """Finds the row "TABLE/ROW"; a table of one's own, which was asked for by its file, has its name too."""
        table, _, row_id = name.partition("/")
        read = {protocol.name: protocol for protocol in self._protocols.values()}
        protocol = read.get(table) or self.protocol(table)
        return protocol, protocol.row(row_id)

    def trained(self, protocol: Protocol, row: Row) -> tuple[Protocol, Row]:
        """Finds the row whose records a row shows: itself, unless it is another table's."""
        return self.named(row.of) if row.of else (protocol, row)

    def _stage_jobs(self, row: Row) -> list[Job]:
        """Lists the stages that a row needs, the first one to be trained first: the stage of its stage, and its own."""
        if not stage_of(row):
            return []
        job = self.stage_job(row)
        return [*self._stage_jobs(job.row), job]

    def stage_job(self, row: Row) -> Job:
        """Makes the job of the stage that a row starts from."""
        return Job(*self.named("{protocol}/{row}".format(**stage_of(row))), STAGE_SEED, True)


def parse_shard(text: str) -> tuple[int, int]:
    """Reads --shard i/n.

    Raises:
        ValueError: It is no share.
    """
    match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]) <= MOST_SHARES:
        raise ValueError(
            f"--shard: must be i/n with 1 <= i <= n <= {MOST_SHARES}; got {text[:40]!r}; for example --shard 2/4"
        )
    return int(match[1]), int(match[2])


def share(jobs: list[Job], index: int, count: int, cost: Callable[[Job], float]) -> list[Job]:
    """Picks one machine's share: the costliest job first, each to the machine with the least to do, so that equal commands give equal shares.

    Stages go to machine 1, where they come first. Jobs that start from one come last on every machine, so that the stage has time to be recorded.

    Args:
        jobs: A plan's, and the same on every machine: what is recorded plays no part.
        index: Which machine, from 1.
        count: How many there are.
        cost: Of a job, in any unit.
    """
    costs = [cost(job) for job in jobs]
    load = [0.0] * count
    machine = [0] * len(jobs)
    for place in sorted(range(len(jobs)), key=lambda place: (not jobs[place].stage, -costs[place], place)):
        machine[place] = 0 if jobs[place].stage else min(range(count), key=load.__getitem__)
        load[machine[place]] += costs[place]
    own = [job for place, job in enumerate(jobs) if machine[place] == index - 1]
    return sorted(own, key=lambda job: (not job.stage, stage_of(job.row) is not None))


def state_of(out: Path, protocol: Protocol, row: Row, seeds: Iterable[int]) -> str:
    """Says in a few words what is recorded of a row: its values, by seed."""
    table, row_id = row.of.split("/") if row.of else (protocol.name, row.id)
    found = []
    for seed in seeds:
        path = record_path(out, table, row_id, seed)
        if not path.exists():
            continue
        try:
            record = read_record(path)
        except ValueError:
            found.append(f"seed {seed}: damaged record")
            continue
        value = row_value(row, record)
        text = "archive written, no score yet" if value is None else f"{value:.2f}"
        before = value_before_crf(row, record)
        text += "" if before is None else f", {before:.2f} before the CRF"
        found.append(f"seed {seed}: {text}" + (", deviates" if record["deviates"] else ""))
    return "recorded (" + "; ".join(found) + ")" if found else "not recorded"


def list_lines(tables: Iterable[str], out: Path, seeds: Sequence[int]) -> list[str]:
    """Lists tables, their rows, what becomes of each, and what is recorded.

    Args:
        tables: Protocols' names; the stages that their rows need are listed first.
        out: Where records are looked for.
        seeds: Of which records are looked for.
    """
    protocols = [load_protocol(table) for table in tables]
    starts = [(p.name, stage["protocol"]) for p in protocols for row in p.rows if (stage := row.settings.get("stage"))]
    # A row of a table may be a stage too; only what is nothing else is listed as one.
    stages = list(dict.fromkeys(stage for name, stage in starts if stage not in (*PAPER, name)))
    lines = []
    for protocol in [*map(load_protocol, stages), *(protocol for protocol in protocols if protocol.name not in stages)]:
        kind = "view" if protocol.view else "stage" if protocol.name in stages else f"{len(protocol.runnable)} rows run"
        values = values_name(protocol)
        metric = "" if values == metric_name(MEAN_IOU) else f"; {values}"
        lines.append(f"{protocol.name}: {protocol.title} ({kind}{metric})")
        wide = max(len(row.id) for row in protocol.rows)
        for row in protocol.rows:
            what = f"shows {row.of}" if row.of else row.status
            what += " with a CRF" if "crf" in row.settings else ""
            state = f"{what}; {state_of(out, protocol, row, seeds)}" if row.status == "run" else f"{what}: {row.why}"
            printed = f"{row.printed or '-':>5}  " if protocol.printed else ""
            lines.append(f"  {row.id:<{wide}}  {printed}{state}")
    return lines


def tables_of(name: str) -> list[str]:
    """Resolves the table that a command names: all of the paper's, or the one."""
    return list(PAPER) if name == "all" else [name]
