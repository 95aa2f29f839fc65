"""Log lines as Caffe's glog writes them, so that people's log parsers go on working.

`I1126 17:45:03.123456 12345 solver.py:210] Iteration 20, loss = 0.693147`: severity, month and day, time, thread, the place in the source that
speaks, and the text. The texts are Caffe's. caffe/tools/extra/parse_log.py and parse_log.sh read them as they are.
"""

from __future__ import annotations

import inspect
import sys
import threading
from datetime import datetime
from pathlib import Path


def info(text: str) -> None:
    """Writes one line to stderr, at once."""
    _write("I", text)


def warning(text: str) -> None:
    """Writes one line of glog's severity W to stderr."""
    _write("W", text)


def number(value: float) -> str:
    """Writes a number as C++'s streams do: six significant digits."""
    return f"{value:g}"


def _write(severity: str, text: str) -> None:
    caller = inspect.currentframe().f_back.f_back
    place = f"{Path(caller.f_code.co_filename).name}:{caller.f_lineno}"
    thread = threading.get_native_id()
    print(f"{severity}{datetime.now():%m%d %H:%M:%S.%f} {thread:5d} {place}] {text}", file=sys.stderr, flush=True)
