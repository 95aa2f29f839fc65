"""What the science is: protocols, one TOML file per table of the paper, read strictly. Needs no torch."""

from repro.protocol.reading import PAPER, PROTOCOLS, SYNTHETIC_NOTE, load_protocol
from repro.protocol.table import UNFELT, Protocol, Row, settings_sha256

__all__ = ["PAPER", "PROTOCOLS", "SYNTHETIC_NOTE", "UNFELT", "Protocol", "Row", "load_protocol", "settings_sha256"]
