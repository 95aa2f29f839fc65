"""Figures that need the network: what a run learned, and what a network sees in any photos: `python -m repro.visualize`."""

from repro.visualize.figures import figures_of_run

__all__ = ["figures_of_run"]
