import subprocess
import sys

import latency


def test_import_is_quick_and_loads_neither_torch_nor_onnx():
    code = (
        "import sys, time; start = time.perf_counter(); import latency; took = time.perf_counter() - start; "
        "print(took, *sorted({'torch', 'onnx', 'onnxruntime', 'tensorrt', 'tensorrt_rtx', 'cuda'} & set(sys.modules)))"
    )
    runs = [subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True).stdout.split() for _ in range(3)]
    assert all(len(run) == 1 for run in runs), runs
    assert min(float(run[0]) for run in runs) < 0.3


def test_all_names_exist_and_are_sorted():
    assert latency.__all__ == sorted(latency.__all__)
    assert all(getattr(latency, name) for name in latency.__all__)
