# `make demo` and `make test` each set up all they need, from nothing but python3.
PYTHON ?= python3
VENV := venv
BIN := $(VENV)/bin

.PHONY: demo test test-all test-versions lint docs dist benchmark clean

demo: $(VENV)/installed
	$(BIN)/python examples/digits_grokking.py

# What is slow, by its mark or by tests/conftest.py (a browser; two of three variations), runs in `make test-all`.
test: $(VENV)/installed
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

test-all: test
	$(BIN)/python -m pytest -n 2 --dist loadfile -m slow

# Other versions of torch, Lightning, Python, ...: all of docs/versions.md, or `make test-versions ONLY=torch-2.4`.
test-versions:
	$(PYTHON) tools/test_versions.py $(ONLY)

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The site, offline; what is wrong on a page, or a link that leads nowhere, is an error.
docs: $(VENV)/installed
	rm -rf docs/_build
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	$(BIN)/python tools/check_links.py docs/_build/html
	@echo "site: docs/_build/html/index.html"

# The wheel and the source distribution, in dist/, each tried in an empty environment.
dist: $(VENV)/installed
	$(BIN)/python tools/check_dist.py

benchmark: $(VENV)/installed
	for script in lc_cost attack_cost rank_cost; do for threads in 1 2; do \
		$(BIN)/python benchmarks/$$script.py --threads $$threads || exit 1; done; done

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps torchattacks  # its pins break Lightning
	touch $@

clean:
	rm -rf $(VENV) lightning_logs build dist docs/_build *.egg-info
