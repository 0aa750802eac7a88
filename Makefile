# `make demo` and `make test` do all the set-up themselves; both work from any state of .venv.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
OUT ?= out
# The stamp names everything that an install depends on: the pins, the extras and where the checkout lies.
STAMP = $(VENV)/.installed-$(shell { cat pyproject.toml constraints.txt; pwd; } | sha256sum | cut -c1-16)

.PHONY: demo test test-newest bad-inputs lint docs gpu env clean

env:
	@bash tools/env.sh "$(PYTHON)" "$(VENV)" "$(STAMP)"

# In the order of their names the long files, tests/integration, begin first. Bytecode is kept whatever the environment says: each of the
# processes that tests start would compile the same modules again.
test: env
	PYTHONDONTWRITEBYTECODE= $(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# The tests nearest to torch and ONNX with the newest releases of NEWEST and every other pin, in an environment of its own.
NEWEST ?= torch onnx onnx-ir onnxscript onnxruntime onnx-graphsurgeon
test-newest:
	@bash tools/newest.sh "$(PYTHON)" "$(OUT)/newest" $(NEWEST)

# Every bad input of the table in tests/bad_inputs; `make test` runs a sample of it.
bad-inputs: env
	PYTHONPATH=.:tests $(PY) -P -m bad_inputs --report benchmarks/bad_inputs.md

lint: env
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(VENV)/bin/lint-imports
	$(PY) -m basedpyright --level error

# The pages of docs/ with the reference of the packages, in out/docs; broken links fail.
docs: env
	$(PY) -c 'import mkdocstrings' 2>/dev/null || $(PY) -m pip install --quiet -c constraints.txt -e '.[docs]'
	PYTHONPATH=. $(PY) tools/imports_svg.py
	$(PY) -m mkdocs build --strict --site-dir $(OUT)/docs

# Measure, search, ship and report, on this machine's CPU. A second run resumes what is there; `make clean` starts afresh.
demo: env
	$(PY) -m lathe profile repvgg-mini --backend onnxruntime --protocol fast --out $(OUT)/cpu.latency.jsonl
	$(PY) -m lathe search pas --space repvgg-mini --table $(OUT)/cpu.latency.jsonl --data digits --budget-fraction 0.6 --out $(OUT)/run
	$(PY) -m lathe export $(OUT)/run --target onnxruntime --out $(OUT)/bundle
	$(PY) -m lathe report $(OUT)/bundle --table $(OUT)/cpu.latency.jsonl

# All that needs a GPU: its tests, then tables, engines and timings by every backend that runs there. `make gpu GPU=--dry-run` tries it
# where there is none; `make gpu PY=python3` uses an environment of your own.
gpu: $(if $(filter $(VENV)/bin/python,$(PY)),env)
	PYTHONPATH=. $(PY) -m pytest tests/gpu -rs
	PYTHONPATH=. $(PY) benchmarks/gpu.py --out $(OUT)/gpu $(GPU)

clean:
	rm -rf $(OUT)
