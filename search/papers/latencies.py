"""Published latencies and speeds of well-known networks, with protocol and device, compared with latency tables.

If all latencies in a table of the same device are off by a constant factor, clocks differ; if only one network is off,
kernels differ.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from latency import CoverageError, Latency, LatencyTable
from latency.units import us_from_ms
from search import spaces

_PRUNET = "PRUNET, Table 2 and Appendix A.1"
_TRTEXEC = "trtexec's median GPU compute time, TensorRT 8.0.1.6, FP16, batch 1"
_V100 = "NVIDIA V100, driver 450.51.06"
_PAS = "Pruning-as-Search, Table 2"
_THROUGHPUT = "images per second at batch 128, full precision, 8 threads"
_RTX = "not printed for these; the experiments are on a TITAN RTX and RTX 2080 Ti with PyTorch 1.7"

_MS = (
    ("PRUNET-0", "0.48", ""),
    ("PRUNET-1", "0.56", ""),
    ("GPUNet-0", "0.61", "gpunet-0"),
    ("PRUNET-2", "0.66", ""),
    ("GPUNet-1", "0.69", "gpunet-1"),
    ("PRUNET-3", "0.77", ""),
    ("PRUNET-4", "0.91", ""),
    ("EfficientNet-B0", "0.94", ""),
    ("OFA 389", "0.94", ""),
    ("EfficientNetX-B0-GPU", "0.96", ""),
    ("OFA 482", "1.06", ""),
    ("PRUNET-5", "1.07", ""),
    ("OFA 595", "1.09", ""),
    ("ResNet-50", "1.1", "resnet-50"),
    ("PRUNET-6", "1.28", ""),
    ("EfficientNetX-B1-GPU", "1.37", ""),
    ("EfficientNetX-B2-GPU", "1.46", ""),
    ("FBNetV3-B", "1.5", ""),
    ("GPUNet-2", "1.57", "gpunet-2"),
    ("EfficientNet-B2", "1.65", ""),
    ("ResNet-101", "1.7", "resnet-101"),
    ("EfficientNetX-B3-GPU", "1.9", ""),
    ("FBNetV3-F", "1.97", ""),
    ("EfficientNet-B3", "2.04", ""),
    ("RegNetY-1.6GF", "2.55", ""),
    ("EfficientNetV2-S", "2.67", ""),
    ("RegNetY-32GF", "4.97", ""),
)
"""Name, milliseconds, and the network's name here."""

_FPS = (
    ("PaS-light-C", "3723", ""),
    ("RepVGG-A0", "3677", "repvgg-a0"),
    ("MNasNet 0.75", "3435", "mnasnet-0.75"),
    ("MobileNet-V2 x0.75", "3052", "mobilenetv2-0.75"),
    ("PaS-light-B", "2817", ""),
    ("PaS-C", "2697", ""),
    ("RepVGG-A1", "2663", "repvgg-a1"),
    ("MobileNet-V2 x1.0", "2569", "mobilenetv2-1.0"),
    ("MNasNet 1.0", "2542", "mnasnet-1.0"),
    ("PaS-B", "2313", ""),
    ("PaS-light-A", "2062", ""),
    ("RepVGG-B0", "2041", "repvgg-b0"),
    ("PaS-A", "1821", ""),
    ("MobileNet-V2 x1.4", "1704", "mobilenetv2-1.4"),
    ("RepVGG-A2", "1550", "repvgg-a2"),
    ("ResNet-50", "850", "resnet-50"),
    ("RepVGG-B1", "826", "repvgg-b1"),
)
"""Name, images per second, and the network's name here."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """A number from a paper.

    Attributes:
        network: name of the network in the paper.
        known: name of the network here; "" if its layers are unknown.
        value: number as printed, in `unit`.
        unit: `ms`, or `FPS` for images per second.
        protocol: how it was measured.
        device: device on which it was measured.
        source: where it is printed.
    """

    network: str
    known: str
    value: str
    unit: str
    protocol: str
    device: str
    source: str

    def ratio(self, ours: Latency) -> float | None:
        """Return the ratio of our latency to the published one.

        None for throughputs, which are at another batch size.
        """
        return ours.us / us_from_ms(float(self.value)) if self.unit == "ms" else None


@dataclass(frozen=True, kw_only=True)
class ComparedLatency:
    """A published number, and each table's latency of the same network: measured as a whole or predicted.

    None if not covered.
    """

    published: Published
    ours: tuple[Latency | None, ...]


def published() -> list[Published]:
    """Return every published number, by paper and speed."""
    return [
        *(_published(row, "ms", _TRTEXEC, _V100, _PRUNET) for row in _MS),
        *(_published(row, "FPS", _THROUGHPUT, _RTX, _PAS) for row in _FPS),
    ]


def comparisons(tables: Sequence[LatencyTable]) -> list[ComparedLatency]:
    """Return every number with the tables' latencies of the network at its own resolution."""
    return [
        ComparedLatency(published=row, ours=tuple(_latency(table, row.known) for table in tables))
        for row in published()
    ]


def _published(row: tuple[str, str, str], unit: str, protocol: str, device: str, source: str) -> Published:
    network, value, known = row
    return Published(
        network=network, known=known, value=value, unit=unit, protocol=protocol, device=device, source=source
    )


def _latency(table: LatencyTable, known: str) -> Latency | None:
    if not known:
        return None
    blocks = spaces.get(known).network()
    try:
        return table.measured_network(blocks) or table.predict(blocks)
    except CoverageError:
        return None
