"""Latency of networks on a device: ONNX in, microseconds out. Needs neither torch nor a search space."""

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
from latency.measure import Measurement
from latency.predict import Predictor
from latency.profile import Workload, profile
from latency.protocol import Protocol
from latency.table import Latency, LatencyTable, Row, Surface, TableHeader, TableWriter

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
    "Measurement",
    "MissingExtra",
    "Predictor",
    "Protocol",
    "Row",
    "RunFailed",
    "Runtime",
    "Surface",
    "TableError",
    "TableHeader",
    "TableWriter",
    "Workload",
    "profile",
]
