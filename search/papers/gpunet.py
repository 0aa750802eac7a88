"""GPUNet (Wang et al. 2022, arXiv:2205.00841): sizes of the networks in NVIDIA's model hub.

Sizes of GPUNet-0 to GPUNet-2 are from Table 2 of the PRUNET paper; those of the distilled networks, called GPUNet-D1
and GPUNet-D3 in the paper and GPUNet-D1 and GPUNet-D2 in the model hub, from Papers with Code; latencies are from the
model hub, https://github.com/NVIDIA/DeepLearningExamples/tree/master/PyTorch/Classification/GPUNet.
"""

from search import spaces
from search.papers.row import PaperRow

_COUNTER = (
    "the FLOPs are by a counter that is not named; ours are the multiply-accumulates of convolutions and linear layers"
)
_V100 = "TensorRT 8 on a V100, FP16, which is not here; `lathe export` measures a network on the device at hand"
_D1 = (
    "the parameters are equal; counter and resolution of the FLOPs are not named, ours are of the published 456x456 "
    "pixels"
)

_SIZES = (
    ("Table 2 of PRUNET", "gpunet-0", "11.9", "3.25", _COUNTER),
    ("Table 2 of PRUNET", "gpunet-1", "12.7", "3.3", _COUNTER),
    ("Table 2 of PRUNET", "gpunet-2", "25.8", "8.38", _COUNTER),
    ("Papers with Code", "gpunet-d1", "10.6", "3.66", _D1),
    ("Papers with Code", "gpunet-d2", "19", "15.6", _COUNTER),
)
"""Table, name, parameters in millions, FLOPs in billions, and a note on the FLOPs."""

_LATENCIES = {
    "gpunet-0": "0.63",
    "gpunet-1": "0.82",
    "gpunet-2": "1.68",
    "gpunet-p0": "0.63",
    "gpunet-p1": "0.96",
    "gpunet-d1": "1.24",
    "gpunet-d2": "2.17",
}
"""Milliseconds."""


def rows() -> list[PaperRow]:
    """Return two rows per network with published sizes, then the latencies."""
    paper_rows: list[PaperRow] = []
    for table, name, params, macs, note in _SIZES:
        space = spaces.get(name)
        paper_rows += [
            PaperRow(
                table=table,
                row=name,
                quantity="trained params",
                paper=params,
                unit="M",
                ours=space.parameters(deployed=False),
            ),
            PaperRow(
                table=table, row=name, quantity="deployed MACs", paper=macs, unit="G", ours=space.macs(), note=note
            ),
        ]
    return paper_rows + [
        PaperRow(table="model hub", row=name, quantity="latency", paper=ms, unit="ms", note=_V100)
        for name, ms in _LATENCIES.items()
    ]
