"""Official distributions laid out as the protocols expect them: `python -m repro.data prepare` and `check`."""
