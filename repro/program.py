"""What the programs of this package share: how they end."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable


def one_line(error: BaseException) -> str:
    """Writes an error as one line."""
    return " ".join(str(error).split())


def exit_code(
    call: Callable[[], int | None], show_traceback: bool = False, interrupted: str = "nothing was lost"
) -> int:
    """Runs a program.

    Args:
        call: The program; returns its exit code, or None for 0.
        show_traceback: Whether an error shows where it comes from.
        interrupted: What to say after Ctrl-C.

    Returns:
        What `call` returned; 2 after an error, which is one line on stderr; 130 where it was interrupted.
    """
    try:
        return call() or 0
    except KeyboardInterrupt:
        print(f"interrupted; {interrupted}", file=sys.stderr)
        return 130
    except (ValueError, RuntimeError, OSError) as error:
        if show_traceback:
            traceback.print_exc()
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
