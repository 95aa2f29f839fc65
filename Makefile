# Each target is complete on a fresh machine with Python 3.11+, make and a C++ compiler: it makes its own virtual environment in .venv first.
PYTHON ?= python3
VENV := .venv
TORCH := torch==2.13.0

.PHONY: table1 test lint clean

table1: $(VENV)/installed
	$(VENV)/bin/python -m repro.run table1 $(TABLE1)

test: $(VENV)/installed
	$(VENV)/bin/python -m pytest

lint: $(VENV)/installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/clang-format --dry-run -Werror $$(git ls-files '*.cpp' '*.h' '*.cu' '*.cuh')

# torch comes first: the extension is compiled against the torch that will load it.
$(VENV)/installed: setup.py pyproject.toml $(shell find csrc -type f)
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet $(TORCH) numpy "setuptools>=77" wheel ninja pybind11
	$(VENV)/bin/pip install --quiet --no-build-isolation --editable ".[test,coco]"
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info repro/*.so
