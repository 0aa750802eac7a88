import subprocess
import sys

import latency


def test_import_loads_numpy_and_msgspec_and_nothing_else_of_others():
    code = "import sys; before = set(sys.modules); import latency; print(*{name.partition('.')[0] for name in set(sys.modules) - before})"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) - sys.stdlib_module_names <= {"latency", "numpy", "msgspec", "typing_extensions"}


def test_all_names_exist_and_are_sorted():
    assert latency.__all__ == sorted(latency.__all__)
    assert all(getattr(latency, name) for name in latency.__all__)
