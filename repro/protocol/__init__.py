"""What the science is: protocols, one TOML file per table of the paper, read strictly. Needs no torch."""

from repro.protocol.reading import PAPER, PROTOCOLS, SYNTHETIC_NOTE, is_shipped, load_protocol, load_protocols
from repro.protocol.table import UNFELT, Protocol, Row, settings_sha256, training_settings
from repro.protocol.writing import as_toml

__all__ = [
    "PAPER",
    "PROTOCOLS",
    "SYNTHETIC_NOTE",
    "UNFELT",
    "Protocol",
    "Row",
    "as_toml",
    "is_shipped",
    "load_protocol",
    "load_protocols",
    "settings_sha256",
    "training_settings",
]
