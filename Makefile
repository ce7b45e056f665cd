# The README's two commands are `make demo` and `make test`; each starts from a bare checkout.
PYTHON ?= python3
BIN = .venv/bin
# Modules go to one process as a whole, so that their fixtures are made once; tests/conftest.py orders them.
PARALLEL = -n 2 --dist loadscope --no-loadscope-reorder
SLIDE ?=

.PHONY: demo test test-fast fuzz docs reference test-encoders lint types contract check check-fast clean

.venv/.ready: pyproject.toml constraints.txt napari.yaml scripts/bootstrap.sh
	PYTHON="$(PYTHON)" sh scripts/bootstrap.sh

demo: .venv/.ready
	sh scripts/on_screen.sh $(BIN)/napari-lrmil demo --out demo $(if $(SLIDE),--slide "$(SLIDE)")

test: .venv/.ready
	sh scripts/on_screen.sh $(BIN)/python -m pytest $(PARALLEL)

# Without the slow tests: whole trainings, killed processes, clusters, windows, benchmarks.
test-fast: .venv/.ready
	sh scripts/on_screen.sh $(BIN)/python -m pytest $(PARALLEL) -m "not slow"

# Thousands of damaged files and a hundred and sixty killed processes; `make test` runs a tenth of them. It goes on where it was stopped.
fuzz: .venv/.ready
	cd tests && PYTHONPATH=. ../$(BIN)/python -m fuzz.campaign --folder ../build/fuzz
	sh scripts/on_screen.sh env LRMIL_FUZZ=all $(BIN)/python -m pytest -n 0 tests/fuzz/test_kills.py

# The docs site, in site/. Only this command needs the extra `docs`; a warning of the build is an error.
docs: .venv/.docs
	$(BIN)/zensical build --clean --strict

# The tables of commands, keys, functions and folders in docs/, after a change of any.
reference: .venv/.ready
	$(BIN)/python scripts/reference_pages.py

.venv/.docs: .venv/.ready
	$(BIN)/pip install --quiet -c constraints.txt -e ".[docs]"
	touch .venv/.docs

# Foundation encoders with random weights, in an environment of their own: see docs/how-to/encoders.md.
test-encoders:
	[ -x .venv-encoders/bin/python ] || "$(PYTHON)" -m venv .venv-encoders
	.venv-encoders/bin/pip install --quiet -c constraints.txt -e ".[train,encoders]" pytest pytest-timeout
	HF_HUB_OFFLINE=1 .venv-encoders/bin/python -m pytest tests/encoders_extra -o addopts="-ra" -o filterwarnings=

lint: .venv/.ready
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: .venv/.ready
	$(BIN)/mypy

contract: .venv/.ready
	$(BIN)/lint-imports

check: lint types contract test

check-fast: lint types contract test-fast

clean:
	rm -rf .venv .venv-encoders demo site .cache
