# Everything runs in .venv, which any target makes when it is missing. No lock file: bounds are in pyproject.toml.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-gpu lint tutorials pictures docs soak bench bench-quick bench-gpu bench-readme fuzz clean

demo: $(READY)
	$(BIN)/mfoc demo --out figures

test: $(READY)
	$(BIN)/python -m pytest -n auto

# What needs a GPU: the tests that ask for one, then every network at every door, there.
test-gpu: $(READY)
	$(BIN)/python -m pytest -m cuda
	$(BIN)/python -m pytest tests/doors --device cuda

# Hostile arguments at every public door, for ten minutes; the tests do so for some seconds.
fuzz: $(READY)
	$(BIN)/python -m tests.fuzz --seconds 600 --seed $(or $(SEED),0)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

tutorials: $(READY)
	for script in tutorials/[0-9]*.py; do echo "$$script"; $(BIN)/python "$$script" || exit 1; done

# The documentation, into site/: tutorials executed (kept until they or the library change), then the pages. SMOKE=1
# executes them with tiny budgets. `python -m http.server -d site` serves it, with its search.
# NO_MKDOCS_2_WARNING: material warns at each build that it stays with mkdocs 1, which pyproject.toml pins for that reason.
docs: $(READY)
	MFOC_SMOKE=$(SMOKE) $(BIN)/python tutorials/site/render.py
	MFOC_SMOKE=$(SMOKE) NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict -q -f tutorials/site/mkdocs.yml
	@echo "site/index.html"

# The pictures of the README, into tutorials/pictures.
pictures: $(READY)
	$(BIN)/python tutorials/pictures.py

# Kills, signals, flipped bits, full disks, threads and 100,000 steps, and what was lost by them; the tests run a short form.
soak: $(READY)
	$(BIN)/python -m tests.soak --long

# Every benchmark; its table is benchmarks/benchmarks.md, and .json.
bench: $(READY)
	-$(BIN)/uv pip install -q --python $(BIN)/python --no-deps mpc==0.0.6 prodigyopt schedulefree
	$(BIN)/python -m tests.benchmarks

# The headline ratios, in under three minutes; and the same into the README.
bench-quick: $(READY)
	$(BIN)/python -m tests.benchmarks --quick

bench-readme: $(READY)
	$(BIN)/python -m tests.benchmarks --quick --readme

bench-gpu: $(READY)
	$(BIN)/python -m tests.benchmarks --device cuda

# uv resolves the two last groups with the overrides in pyproject.toml, which pip does not know. Without a C compiler
# learn2learn cannot be built: then everything else is installed.
$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	test -x $(BIN)/uv || $(BIN)/python -m pip install -q uv
	$(BIN)/uv pip install -q --python $(BIN)/python -e '.[all]' --group dev --group torchattacks --group learn2learn \
		|| { echo "learn2learn could not be built: going on without it"; \
		$(BIN)/uv pip install -q --python $(BIN)/python -e '.[all]' --group dev --group torchattacks; }
	touch $(READY)

clean:
	rm -rf $(VENV) figures benchmarks site tutorials/site/.cache
