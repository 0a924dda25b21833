# `make lab` opens the quickstart notebook, `make test` runs everything; both set up what they need in .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: help lab test check unit notebooks browser peers bench bench-adaptive clean

help: ## list what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

lab: $(VENV)/lab ## set up and open the quickstart notebook in JupyterLab
	@sh scripts/lab.sh $(BIN)

test: $(VENV)/test browser peers check notebooks unit ## set up, browser included, and run all tests

check: $(VENV)/test ## lint, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

unit: $(VENV)/test ## the test-suite, the browser's tests by themselves, with what could not run listed at each end
	PYTHONASYNCIODEBUG=1 $(BIN)/python -m pytest $(or $(PYTEST_ARGS),-n 3 --dist loadfile --ignore=tests/browser)
	[ -n "$(PYTEST_ARGS)" ] || PYTHONASYNCIODEBUG=1 $(BIN)/python -m pytest tests/browser

notebooks: $(VENV)/test ## the notebooks, cell by cell, without a Jupyter server
	$(BIN)/python scripts/notebooks.py

browser: $(VENV)/test ## find or install a browser for the tests
	@sh scripts/browser.sh $(BIN)

peers: $(VENV)/test ## what the tests compare with: Go programs, Kubo among them, where Go is there; iproute2, nats-server, GStreamer, coturn
	@sh scripts/iproute.sh
	@sh scripts/nats.sh
	@sh scripts/gstreamer.sh
	@sh scripts/coturn.sh
	$(BIN)/python tests/go_program.py

bench: $(VENV)/bench peers ## the benchmarks of the README, some minutes
	$(BIN)/python -m tests.benchmarks

bench-adaptive: $(VENV)/bench peers browser ## quality over emulated links, beside aiortc as it comes: two hours, as root
	PYTHONPATH=tests $(BIN)/python tests/benchmarks/bench_adaptive.py --runs 5

$(VENV)/lab $(VENV)/test $(VENV)/bench: pyproject.toml
	@sh scripts/venv.sh $(PYTHON) $(VENV) $(@F)

clean: ## remove what was set up
	rm -rf $(VENV) .cache test-artefacts
