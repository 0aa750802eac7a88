"""Build pycuda from its sdist, to check its names and signatures.

The machine needs neither CUDA nor a driver.

    python tools/build_pycuda.py DIR
    LD_LIBRARY_PATH=DIR/lib PYTHONPATH=DIR/site python -m pytest tests/unit/latency/backends/test_pycuda.py

Headers are those of NVIDIA's wheels on PyPI. `DIR/lib/libcuda.so.1` is a stub: each function of the driver answers that
there is no device. Needs a C++ compiler; takes some minutes.
"""

import argparse
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

HEADERS = ("nvidia-cuda-runtime-cu12", "nvidia-cuda-nvcc-cu12", "nvidia-cuda-profiler-api-cu12")
NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE
WORDS = ("cuGetErrorName", "cuGetErrorString")


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Run a command that must succeed; return its standard output."""
    done = subprocess.run([*map(str, command)], cwd=cwd, check=False, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


def download(into: Path, *flags: str) -> list[Path]:
    """Download files by `pip download`; return their paths."""
    into.mkdir(parents=True, exist_ok=True)
    run(sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", into, *flags)
    return sorted(into.iterdir())


def unpack_headers(work: Path, include: Path) -> None:
    """Unpack the headers of all wheels into one folder, laid out as in a CUDA installation."""
    for wheel in download(work / "wheels", *HEADERS):
        with zipfile.ZipFile(wheel) as files:
            for name in files.namelist():
                _, marker, path = name.partition("/include/")
                if marker and not name.endswith("/"):
                    target = include / path
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(files.read(name))


def write_stub(include: Path, library: Path) -> None:
    """Build a stub of the driver library: every function named in its headers reports that there is no device."""
    declared = "".join((include / name).read_text() for name in ("cuda.h", "cudaProfiler.h"))
    functions = sorted({*re.findall(r"\bcu[A-Z]\w*", declared)} - {*WORDS})
    source = library.with_suffix(".c")
    words = "".join(f'int {name}(int code, const char **text) {{ *text = "no device"; return 0; }}\n' for name in WORDS)
    source.write_text(words + "".join(f"int {name}() {{ return {NO_DEVICE}; }}\n" for name in functions))
    run("cc", "-shared", "-fPIC", "-w", f"-Wl,-soname,{library.name}", "-o", library, source)


def main() -> None:
    """Build pycuda into the given directory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    root = parser.parse_args().directory.resolve()
    work, lib, site = root / "work", root / "lib", root / "site"
    lib.mkdir(parents=True, exist_ok=True)
    unpack_headers(work, root / "include")
    write_stub(root / "include", lib / "libcuda.so.1")
    (lib / "libcuda.so").unlink(missing_ok=True)
    (lib / "libcuda.so").symlink_to("libcuda.so.1")
    (sdist,) = download(work / "sdist", "--no-binary", "pycuda", "pycuda")
    with tarfile.open(sdist) as files:
        files.extractall(work, filter="data")
    source = work / sdist.name.removesuffix(".tar.gz")
    run(
        sys.executable,
        "configure.py",
        f"--cuda-inc-dir={root / 'include'}",
        f"--cudadrv-lib-dir={lib}",
        "--no-cuda-enable-curand",
        cwd=source,
    )
    os.environ.setdefault("NPY_NUM_BUILD_JOBS", "2")
    run(sys.executable, "-m", "pip", "install", "-q", "--upgrade", "--target", site, source)
    print(f"LD_LIBRARY_PATH={lib} PYTHONPATH={site} python -m pytest tests/unit/latency/backends/test_pycuda.py")


if __name__ == "__main__":
    main()
