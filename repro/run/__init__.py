"""What to run, in which order, on what and at which cost: `python -m repro.run`."""
