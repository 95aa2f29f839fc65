"""What --dry-run prints: the resolved settings of every row, what it reads, and what it costs. Starts no GPU."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from repro.distributed import world_size
from repro.protocol import PROTOCOLS, Row
from repro.records.store import record_path
from repro.run.cost import (
    crf_flops,
    duration,
    estimate,
    forward_flops,
    recorded_speeds,
    row_flops,
    test_images,
    training_images,
)
from repro.run.inputs import Inputs, source_key
from repro.run.options import Options
from repro.run.plan import Job, Plan


def idle_lines(plan: Plan) -> list[str]:
    """Lists the rows of the tables asked for that do not run, and why."""
    return [
        f"{protocol.name} {row.id} does not run: {row.status}: {row.why}"
        for protocol in plan.tables
        for row in protocol.rows
        if row.status != "run"
    ]


def _shared(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Lists the settings that all rows have in common."""
    first, *others = (row.settings for row in rows)
    return [
        (section, key)
        for section, table in first.items()
        for key in table
        if all(other.get(section, {}).get(key) == table[key] for other in others)
    ]


def _source_lines(sources: Mapping[str, Inputs]) -> list[str]:
    """Says what was found of data and weights, each once."""
    lines = []
    for inputs in sources.values():
        data = f"{len(inputs.train)} training and {len(inputs.val)} test images" if inputs.val else "drawn when it runs"
        deviates = ", ".join(f"{key} = {value}" for key, value in inputs.deviates.items())
        lines.append(
            f"data: {data}; weights: {inputs.weights or 'none'}" + (f"; deviates in {deviates}" if deviates else "")
        )
    return list(dict.fromkeys(lines))


def _crf(settings: dict[str, dict]) -> str:
    """Says what the CRF of a test image costs; "" without one."""
    if "crf" not in settings:
        return ""
    return f" with a CRF of {settings['crf']['max_iter']} iterations, {crf_flops(settings) / 1e9:.3g} GFLOP each"


def plan_lines(
    plan: Plan, jobs: list[Job], options: Options, device_name: str, found: Mapping[str, Inputs] | None = None
) -> list[str]:
    """Lays a plan out, table by table.

    Args:
        plan: The whole plan.
        jobs: Of this machine.
        options: How the jobs would run.
        device_name: As in records.
        found: What the jobs would read, by `source_key`, as far as it was looked at.
    """
    lines = [f"{protocol.name}: {protocol.title}" for protocol in plan.tables]
    lines.append(
        f"{len({job.key[:2] for job in jobs})} rows, {len(jobs)} trainings; records under {options.out}; "
        f"device {options.compute.device} ({device_name or 'of unknown name'}), {options.compute.precision}"
        + (f", {world_size()} processes" if world_size() > 1 else "")
    )
    sources = found or {}
    lines += _source_lines(sources)
    speeds = recorded_speeds([options.out, PROTOCOLS / "measured"], device_name, options.compute.precision)
    total = 0.0
    unknown = False
    tables: dict[str, dict[str, list[Job]]] = {}
    for job in jobs:
        tables.setdefault(job.protocol.name, {}).setdefault(job.row.id, []).append(job)
    for table, rows in tables.items():
        shared = _shared([found[0].row for found in rows.values()])
        settings = next(iter(rows.values()))[0].row.settings
        lines.append(f"settings of {table}:")
        lines += [f"  {section}.{key} = {json.dumps(settings[section][key])}" for section, key in shared]
        lines.append(
            f"rows of {table}, with their cost (training: 3 x forward x images, of fixed layers 1 x; test: forward and CRF x images):"
        )
        for row_id, found in rows.items():
            settings = found[0].row.settings
            own = {f"{s}.{k}": v for s, section in settings.items() for k, v in section.items() if (s, k) not in shared}
            recorded = sum(record_path(options.out, *job.key).exists() for job in found)
            inputs = sources.get(source_key(found[0].row))
            tested = len(inputs.val) if inputs and inputs.val else test_images(settings)
            seconds, words = estimate(settings, speeds, len(found) - recorded, tested)
            total += seconds or 0.0
            unknown |= seconds is None
            lines.append(
                f"  {row_id}: {training_images(settings)} images, {forward_flops(settings, 'transform') / 1e9:.3g} GFLOP forward each, "
                f"{tested} tested{_crf(settings)}, {row_flops(settings, tested) * len(found) / 1e15:.3g} PFLOP in all"
                f"{f', {recorded} of {len(found)} recorded' if recorded else ''}; {words}; {json.dumps(own)}"
            )
    if not unknown:
        lines.append(f"together about {duration(total)}")
    return lines + idle_lines(plan)
