"""Every chart of the package: of a run, of the report, of a benchmark. Needs no torch."""
