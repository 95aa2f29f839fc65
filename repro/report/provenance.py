"""Where numbers come from: the commands that regenerate them, the protocols' rulings, and the differences from Caffe."""

from __future__ import annotations

import ast
import functools
import json
import re
import shlex
from pathlib import Path
from typing import Any

from repro.protocol import PROTOCOLS, Protocol

_SECTION = re.compile(r"^\[+(?:common\.)?([\w.]+)\]+\s*(?:#.*)?$")
_INFERRED = re.compile(r"^\s*(?:([\w.]+)\s*=\s*(.*?)\s*)?#\s*inferred\b:?\s*(.*)$")
_ASSIGNED = re.compile(r"^\s*([\w.]+)\s*=\s*(.*?)\s*(?:#.*)?$")


def commands(protocol: Protocol, row_id: str, seeds: list[int], table: str, records: list[dict[str, Any]]) -> list[str]:
    """Writes the commands that measure a row.

    Args:
        protocol: The row's own.
        row_id: The row.
        seeds: Of the records; empty where there are none yet.
        table: The name to type: a stand-in runs under the name of the table that it stands for.
        records: What was measured; its overrides are repeated.
    """
    words = ["python", "-m", "repro.run", table, "--row", row_id]
    deviates = dict(records[0]["deviates"]) if records else {}
    given = deviates.pop("weights", None) or deviates.pop("weights.file", None)
    words += [] if protocol.synthetic else ["--data-root", "DIR"]
    words += ["--weights", str(given or "FILE")] if given or not protocol.synthetic else []
    if precision := deviates.pop("precision", None):
        words += ["--precision", str(precision)]
    counts = [key for key in ("data.num_train", "data.num_val") if key in deviates]
    for key in counts:
        del deviates[key]
    words += ["--subset"] if counts else []
    for key, value in sorted(deviates.items()):
        words += ["--set", f"{key}={json.dumps(value)}"]
    line = shlex.join(words)
    if seeds and seeds == list(range(seeds[0], seeds[0] + len(seeds))):
        first = f" --seed {seeds[0]}" if seeds[0] != 1 else ""
        return [line + first + (f" --seeds {len(seeds)}" if len(seeds) > 1 else "")]
    return [f"{line} --seed {seed}" for seed in seeds] or [line]


def _key(section: str, key: str) -> str:
    return f"{section}{key}" if section.endswith(", ") else f"{section}.{key}"


def rulings(protocols: Path = PROTOCOLS) -> list[dict[str, Any]]:
    """Lists every setting that a protocol marks as inferred, each with the files that say so.

    Returns:
        Tables of key, value, why and files, in the order of the files.
    """
    found: dict[tuple[str, str, str], list[str]] = {}
    for path in sorted(protocols.glob("*.toml")):
        section, pending = "", ""
        for line in path.read_text(encoding="utf-8").splitlines():
            if header := _SECTION.match(line.strip()):
                section = header[1]
            elif section.startswith("row") and (named := re.match(r'id = "([\w-]+)"', line)):
                section = f"row {named[1]}, "
            elif marked := _INFERRED.match(line):
                key, value, why = marked.groups()
                if key is None:  # A line of its own speaks of the next key.
                    pending = f"{pending} {why}".strip()
                    continue
                found.setdefault((_key(section, key), value, why), []).append(path.name)
            elif pending and (assigned := _ASSIGNED.match(line)):
                found.setdefault((_key(section, assigned[1]), assigned[2], pending), []).append(path.name)
                pending = ""
            elif pending and line.strip().startswith("#"):
                pending += " " + line.strip().lstrip("# ")
            else:
                pending = ""
    return [{"key": key, "value": value, "why": why, "files": files} for (key, value, why), files in found.items()]


@functools.cache
def _docstrings(package: Path) -> list[tuple[str, str]]:
    """Reads every docstring of a package, with the place where it stands."""
    found = []
    for path in sorted(package.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
                name = f", {node.name}" if hasattr(node, "name") else ""
                found.append((path.relative_to(package.parent).as_posix() + name, text))
    return found


def code_notes(package: Path, label: str, needle: str = "") -> list[dict[str, str]]:
    """Lists the paragraphs of docstrings that begin with a label, such as "Deviates:".

    Args:
        package: Folder of Python files.
        label: What the paragraph begins with.
        needle: What it must contain.
    """
    return [
        {"where": where, "text": " ".join(part.removeprefix(label).split())}
        for where, text in _docstrings(package)
        for paragraph in text.split("\n\n")
        for part in re.split(r"\n(?=[A-Z]\w+:)", paragraph)
        if part.startswith(label) and needle in part
    ]


def differences_from_caffe(readme: Path = PROTOCOLS.parent / "README.md") -> list[str]:
    """Reads README's list of differences from Caffe; empty where there is no README."""
    try:
        text = readme.read_text(encoding="utf-8")
    except OSError:
        return []
    section = text.partition("\n## Differences from Caffe\n")[2].partition("\n## ")[0]
    items = re.split(r"^- ", section, flags=re.MULTILINE)[1:]
    return [" ".join(item.partition("\n\n")[0].split()) for item in items]
