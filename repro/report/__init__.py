"""The reproduction report: what was measured, beside what was printed. `python -m repro.report`; needs no torch."""
