"""What the science is: protocols, one TOML file per table of the paper, read strictly. Needs no torch."""

from repro.protocol.reading import PAPER, PROTOCOLS, SYNTHETIC_NOTE, load_protocol, load_protocols
from repro.protocol.table import UNFELT, Protocol, Row, settings_sha256

__all__ = [
    "PAPER",
    "PROTOCOLS",
    "SYNTHETIC_NOTE",
    "UNFELT",
    "Protocol",
    "Row",
    "load_protocol",
    "load_protocols",
    "settings_sha256",
]
