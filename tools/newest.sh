#!/usr/bin/env bash
# Runs the tests nearest to torch and ONNX with the newest releases of the named packages; all others stay pinned.
set -euo pipefail
python=$1 venv=$2
shift 2

mkdir -p "$venv"
pins="$venv/constraints.txt"
cp constraints.txt "$pins"
for name in "$@"; do
  sed -i -E "/^${name//[-_]/[-_]}==/Id" "$pins"
done
export PIP_CONSTRAINT="$pins" PIP_DISABLE_PIP_VERSION_CHECK=1
"$python" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --editable '.[train,report,dev]'
"$venv/bin/python" -m pip install --quiet --upgrade "$@"
"$venv/bin/python" -m pip list --format=freeze | grep -iE "^($(printf '%s' "${*//[-_]/[-_]}" | tr ' ' '|'))=="
"$venv/bin/python" -m pytest -n 2 --dist loadfile \
  tests/unit/deploy tests/unit/reparam tests/unit/latency/backends/test_onnxruntime.py
