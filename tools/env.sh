#!/usr/bin/env bash
# Brings VENV to the pinned state, whatever state it is in: absent, half installed, damaged, of another Python or moved.
set -euo pipefail
python=$1 venv=$2 stamp=$3

supported='import sys; sys.exit(sys.version_info < (3, 11))'
if [ -e "$stamp" ] && "$venv/bin/python" -c "$supported" 2>/dev/null && "$venv/bin/python" -m pip check >/dev/null 2>&1 \
   && "$venv/bin/python" -c 'import torch, onnxruntime, msgspec, lathe' 2>/dev/null; then
  exit 0
fi

"$python" -c "$supported" 2>/dev/null || { echo "Lathe needs Python >= 3.11, '$python' is $("$python" --version 2>&1 || true): run make PYTHON=python3.11" >&2; exit 2; }
if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1 || ! "$venv/bin/python" -c "$supported"; then
  rm -rf "$venv"
  "$python" -m venv "$venv" || { rm -rf "$venv"; echo "python's venv module does not work: install it (Debian: apt-get install python3-venv)" >&2; exit 2; }
fi

# The pins hold for what builds the package, too.
export PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt PIP_DISABLE_PIP_VERSION_CHECK=1
rm -f "$venv"/.installed-*
echo "installing the pinned packages into $venv ..." >&2
# A package whose files were damaged satisfies pip by its metadata alone; it is only reinstalled when it cannot be imported.
extras='.[train,report,tensorboard,tensorrt-rtx,dev]'
"$venv/bin/python" -m pip install --quiet --editable "$extras"
if ! "$venv/bin/python" -m pip check >/dev/null || ! "$venv/bin/python" -c 'import torch, onnxruntime, msgspec, lathe' 2>/dev/null; then
  "$venv/bin/python" -m pip install --quiet --force-reinstall --editable "$extras"
fi
touch "$stamp"
