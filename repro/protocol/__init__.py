"""What the science is: protocols, one TOML file per table of the paper, read strictly. Needs no torch."""

from repro.protocol.metric import (
    MEAN_IOU,
    Metric,
    metric_classes,
    metric_name,
    metric_value,
    plain_metric,
    read_metric,
)
from repro.protocol.reading import PAPER, PROTOCOLS, SYNTHETIC_NOTE, is_shipped, load_protocol, load_protocols
from repro.protocol.table import UNFELT, Protocol, Row, settings_sha256, training_settings
from repro.protocol.writing import as_toml

__all__ = [
    "MEAN_IOU",
    "PAPER",
    "PROTOCOLS",
    "SYNTHETIC_NOTE",
    "UNFELT",
    "Metric",
    "Protocol",
    "Row",
    "as_toml",
    "is_shipped",
    "load_protocol",
    "load_protocols",
    "metric_classes",
    "metric_name",
    "metric_value",
    "plain_metric",
    "read_metric",
    "settings_sha256",
    "training_settings",
]
