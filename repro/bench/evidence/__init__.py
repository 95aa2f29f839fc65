"""Proves an installation on its own GPU: `python -m repro.bench.evidence --out DIR --budget SECONDS`."""
