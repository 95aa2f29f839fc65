"""The programs under one name: `attention-to-scale run table1` is `python -m repro.run table1`."""

from __future__ import annotations

import importlib
import sys

PROGRAMS = {
    "run": ("repro.run.__main__", "trains and tests the rows of the paper's tables"),
    "report": ("repro.report.__main__", "one page of everything that was measured"),
    "visualize": ("repro.visualize.__main__", "pictures of a run, or of any photos"),
    "evaluate": ("repro.evaluate.__main__", "scores label maps, whoever made them"),
    "data": ("repro.data.__main__", "lays data sets out as the protocols expect them"),
    "export": ("repro.export", "a training snapshot as Caffe's files"),
    "caffe": ("repro.caffe.__main__", "trains, tests, times and draws Caffe's own prototxts as they stand"),
    "weights": ("caffe_weights.__main__", "lists, converts, compares and writes Caffe's files"),
    "bench": ("repro.bench.__main__", "the operators against PyTorch"),
}


def main(arguments: list[str] | None = None) -> int:
    """Runs the program that the first argument names; returns its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] not in PROGRAMS:
        wide = max(map(len, PROGRAMS))
        asked = arguments[:1] in (["-h"], ["--help"])
        lines = [
            "usage: attention-to-scale PROGRAM ...",
            *(f"  {name:<{wide}}  {text}" for name, (_, text) in PROGRAMS.items()),
        ]
        print("\n".join(lines), file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    return importlib.import_module(PROGRAMS[arguments[0]][0]).main(arguments[1:])


if __name__ == "__main__":
    sys.exit(main())
