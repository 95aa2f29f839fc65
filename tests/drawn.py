"""hypothesis's `given`, `settings` and strategies `st`. Where it is not installed, as on a bare machine with a GPU, the tests that draw their cases are skipped and the others of their file run."""

from __future__ import annotations

from typing import Any

import pytest

try:
    from hypothesis import given, settings
    from hypothesis import strategies as st
except ModuleNotFoundError:

    class Nothing:
        """Stands for every strategy, and for what is made of it."""

        def __getattr__(self, name: str) -> Nothing:
            return self

        def __call__(self, *arguments: Any, **named: Any) -> Nothing:
            return self

        def __or__(self, other: Any) -> Nothing:
            return self

    st = Nothing()

    def settings(**_: Any):
        return lambda test: test

    def given(*_: Any):
        @pytest.mark.skip(reason="needs hypothesis: pip install .[test]")
        def skipped() -> None:
            """Takes no arguments: no fixture stands for what would be drawn."""

        def replaced(test):
            skipped.__name__ = test.__name__
            return skipped

        return replaced


__all__ = ["given", "settings", "st"]
