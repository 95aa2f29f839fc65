"""The jobs of a plan, one after the other: what they read, which are recorded already, and the tables that they fill."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace

from repro.data.synthetic.cache import draw_data
from repro.distributed import from_main, local_rank, rank, wait_for_all, world_size
from repro.models import MultiScale, build
from repro.models.weights import KEEPS_FILLER
from repro.protocol import Protocol, metric_name
from repro.records.own import keep_protocol
from repro.records.store import BEFORE_CRF
from repro.records.tables import Records, per_class_line, records_of
from repro.run.inputs import Given, Inputs, filled_layers, find, load_weights, prepare, source_key
from repro.run.options import Options
from repro.run.plan import Job, Plan
from repro.run.row import existing_record, run_row
from repro.run.stage import stage_of, stage_weights
from repro.shell import log

Found = dict[tuple[str, str, int], dict]  # Job.key -> its record


class Sources:
    """Everything that the jobs of a command read, found and checked once, before the first is trained; under torchrun by the first process.

    Args:
        given: What the command says of data and weights.
        plan: The whole plan.
        jobs: Of this machine.
        options: How to run.

    Raises:
        FileNotFoundError, ValueError: Something is missing or unusable, a setting is wrong, or weights do not fit.
    """

    def __init__(self, given: Given, plan: Plan, jobs: list[Job], options: Options):
        self._plan, self._out = plan, options.out

        def prepared() -> dict[str, Inputs]:
            found = _by_source(given, plan, jobs, lambda job, given: prepare(job, given, options))
            check_weights(plan, jobs, found)
            return found

        self._prepared = from_main(prepared)
        if given.data_root is None and world_size() > 1:
            for job in jobs if rank() > 0 and local_rank() == 0 else ():
                draw_data(job.row.settings)  # where another machine has another cache
            wait_for_all()

    def of(self, job: Job, found: Found) -> Inputs | None:
        """Finds what a job reads.

        Args:
            job: The job.
            found: The records so far, by job.

        Returns:
            Its inputs; None where this machine did not prepare them, or where they come from a stage that has no record yet.
        """
        inputs = self._prepared.get(source_key(job.row))
        if inputs is None or stage_of(job.row) is None:
            return inputs
        record = found.get(self._plan.stage_job(job.row).key)
        return inputs.after_stage(stage_weights(record, self._out), record["deviates"]) if record else None


def look_at_sources(given: Given, plan: Plan, jobs: list[Job]) -> dict[str, Inputs]:
    """Looks at data and weights as a run would, but for decoding the images: for a plan that is only printed.

    Args:
        given, plan, jobs: As for `Sources`.

    Returns:
        What was found, by `source_key`.

    Raises:
        FileNotFoundError, ValueError: As for `Sources`.
    """
    found = _by_source(given, plan, jobs, find)
    check_weights(plan, jobs, found)
    return found


def _by_source(given: Given, plan: Plan, jobs: list[Job], look: Callable[[Job, Given], Inputs]) -> dict[str, Inputs]:
    given = replace(given, several=len({job.row.dataset for job in plan.jobs}) > 1)
    found: dict[str, Inputs] = {}
    for job in jobs:
        if source_key(job.row) not in found:
            found[source_key(job.row)] = look(job, given)
    return found


def check_weights(plan: Plan, jobs: list[Job], found: dict[str, Inputs]) -> None:
    """Sees that every row's network can be built and its weights fit: a wrong setting of the last row shall be found before the first is trained.

    Raises:
        ValueError: A setting is wrong, or weights do not fit.
    """
    for job in {job.key[:2]: job for job in jobs}.values():
        network = _network(job)
        if stage_of(job.row):
            _check_stage(plan.stage_job(job.row), job, network)
        else:
            complete = job.row.settings["solver"]["max_iter"] == 0
            load_weights(network, found[source_key(job.row)].weights, complete, filled_layers(job.row))


def _network(job: Job) -> MultiScale:
    return build(job.row.settings["model"], len(job.row.settings["data"]["class_names"]), seed=0)


def _check_stage(stage: Job, job: Job, network: MultiScale) -> None:
    """Raises ValueError unless what a stage trains will fit a row that starts from it."""
    trained = {name: layer.weight.shape for name, layer in _network(stage).convolutions().items()}
    layers = {name: layer for name, layer in network.convolutions().items() if not name.startswith(KEEPS_FILLER)}
    different = [name for name, layer in layers.items() if trained.get(name) != layer.weight.shape]
    if different:
        raise ValueError(
            f"{job.protocol.name} {job.row.id}: its layers must have the shapes of its stage {stage.protocol.name} {stage.row.id}; "
            f"got others for {', '.join(different)}; give both the same model"
        )


def look(job: Job, sources: Sources, found: Found, options: Options) -> None:
    """Puts a job's record into `found` where there is one; one that starts from a stage only where that is recorded.

    Raises:
        ValueError: The record was made with other settings, data, weights or precision.
    """
    inputs = from_main(lambda: sources.of(job, found))
    if job.key not in found and (inputs is not None or stage_of(job.row) is None):
        record = from_main(lambda: existing_record(job, inputs, options))
        found |= {job.key: record} if record else {}


def value_text(record: dict) -> str:
    """Writes a record's value, or that there is none yet, and that before the CRF."""
    texts = []
    for result in (record, record.get(BEFORE_CRF)):
        if result is not None:
            value = result["value"]
            archive = f"{result['submission']['archive']} is written, no score yet" if value is None else ""
            texts.append(archive or f"{value:.2f}")
    return "; before the CRF ".join(texts)


def train_all(plan: Plan, jobs: list[Job], sources: Sources, options: Options) -> tuple[Found, list[Job]]:
    """Trains every job that is not recorded yet, and keeps the protocols that are one's own beside the records.

    Returns:
        The records by job, those of other machines' stages among them; and the jobs that wait for a stage which another machine trains.
    """
    found: Found = {}
    waiting = []
    for job in [*(job for job in plan.jobs if job.stage), *jobs]:
        look(job, sources, found, options)
    for protocol in plan.own() if rank() == 0 else ():
        keep_protocol(options.out, protocol)
    for number, job in enumerate(jobs, start=1):
        title = f"[{number}/{len(jobs)}] {job}"
        if job.key in found:
            log(f"{title}: recorded, {value_text(found[job.key])}")
            continue
        stage = plan.stage_job(job.row) if stage_of(job.row) else None
        if stage:
            look(stage, sources, found, options)
            look(job, sources, found, options)
            if stage.key not in found:
                log(f"{title}: waits for {stage}")
                waiting.append(job)
                continue
            if job.key in found:
                log(f"{title}: recorded, {value_text(found[job.key])}")
                continue
        log(title)
        record = found[job.key] = run_row(job, from_main(lambda job=job: sources.of(job, found)), options)
        paper = f" (paper {job.row.printed})" if job.row.printed else ""
        log(
            f"{title}: {metric_name(job.row.metric)} {value_text(record)}{paper}, {record['run']['seconds']:.0f} s; {per_class_line(record)}"
        )
    return found, waiting


def table_records(protocol: Protocol, plan: Plan, found: Found, sources: Sources, options: Options) -> Records:
    """Collects what a table shows: the records of this command, and those made earlier under the same settings."""
    named = [row.difference[0] for row in protocol.rows if row.difference]
    shown = [plan.trained(protocol, row) for row in protocol.rows if row.status == "run"] + list(map(plan.named, named))
    every: dict[str, Records] = {}
    for seed in plan.seeds:
        for job in {job.key: job for job in (Job(*place, seed) for place in shown)}.values():
            record = found.get(job.key)
            if record is None:
                with contextlib.suppress(ValueError):
                    record = existing_record(job, sources.of(job, found), options)
            if record:
                every.setdefault(job.protocol.name, {}).setdefault(job.row.id, []).append(record)
    return records_of(protocol, every)
