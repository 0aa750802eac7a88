"""Latency of networks on a device: takes ONNX, returns microseconds. Needs neither torch nor a search space."""

from latency.block import BlockSpec
from latency.device import Device, Runtime
from latency.errors import (
    BuildFailed,
    CoverageError,
    DeviceUnavailable,
    FingerprintMismatch,
    LatencyError,
    MissingExtra,
    RunFailed,
    TableError,
)
from latency.lowered import Lowered
from latency.measure import Measurement
from latency.predict import Predictor
from latency.profile import Workload, profile
from latency.protocol import Protocol
from latency.rows import Latency, Recording, Row, TableHeader
from latency.sentinel import Safeguards
from latency.surface import Surface
from latency.table import LatencyTable
from latency.tablefile import TableWriter

__all__ = [
    "BlockSpec",
    "BuildFailed",
    "CoverageError",
    "Device",
    "DeviceUnavailable",
    "FingerprintMismatch",
    "Latency",
    "LatencyError",
    "LatencyTable",
    "Lowered",
    "Measurement",
    "MissingExtra",
    "Predictor",
    "Protocol",
    "Recording",
    "Row",
    "RunFailed",
    "Runtime",
    "Safeguards",
    "Surface",
    "TableError",
    "TableHeader",
    "TableWriter",
    "Workload",
    "profile",
]
