"""Tables of one's own: the run keeps their protocol beside their records, so that whoever reads these knows it. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from repro.files import write_text
from repro.protocol import Protocol, as_toml, load_protocol, load_protocols
from repro.protocol.writing import KEPT


class Known(NamedTuple):
    """The protocols of some folders' records.

    protocols: Those of this package in their order, then one's own.
    own: Of one's own the file, by table.
    not_used: (file, why it was left out).
    """

    protocols: dict[str, Protocol]
    own: dict[str, Path]
    not_used: list[tuple[Path, str]]


def kept_path(out: Path, table: str) -> Path:
    """Says where the protocol of a table of one's own is kept; run from there it fills the same table."""
    return out / table / f"{table}.toml"


def keep_protocol(out: Path, protocol: Protocol) -> None:
    """Keeps a protocol of one's own beside its records; one that is there as it should be, or is itself the file that was run, stays as it is.

    Args:
        out: The run's --out folder.
        protocol: Without overrides.

    Raises:
        ValueError: Another file lies in its place, which the run did not write.
    """
    path = kept_path(out, protocol.name)
    if path.exists():
        try:
            there = replace(load_protocol(str(path)), sha256="")
        except ValueError:
            there = None
        if there == replace(protocol, sha256=""):
            return
        if not path.read_bytes().startswith(KEPT.encode()):
            raise ValueError(
                f"{path}: must be free for the protocol that is run, which is kept there; got another file; choose another --out"
            )
    write_text(path, as_toml(protocol))


def known_protocols(folders: Iterable[Path]) -> Known:
    """Loads this package's protocols, and those of one's own that runs kept below some folders; of two that differ the first stands.

    Args:
        folders: The --out folders of runs.
    """
    known = Known(load_protocols(), {}, [])
    shipped = set(known.protocols)
    for folder in dict.fromkeys(folders):
        for path in sorted(folder.glob("*/*.toml")):
            if path.stem != path.parent.name or path.stem in shipped:
                continue
            try:
                protocol = load_protocol(str(path))
                first = known.protocols.setdefault(protocol.name, protocol)
                if first.sha256 != protocol.sha256:
                    raise ValueError(f"differs from {known.own[protocol.name]}, which stands for its table")
                known.own.setdefault(protocol.name, path)
            except ValueError as error:
                known.not_used.append((path, str(error)))
    return known
