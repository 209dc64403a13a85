# The commands of the house. Each sets up .venv with the pinned versions first, if need be.

PYTHON ?= python3
BIN := .venv/bin
# set in some environments; without .pyc files, importing TensorFlow takes 20 seconds instead of 5
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup sweep test test-fast test-jax test-torch test-all check docs ui clean

setup: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "cnn_search needs Python 3.11 or newer; run make PYTHON=python3.12"'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

sweep: setup  ## the main job, on images that are on board; a few minutes on two cores
	$(BIN)/python -m cnn_search.sweep digits
	@echo
	@echo "See every trial:      make ui"
	@echo "On real photographs:  $(BIN)/python -m cnn_search.sweep cifar10"

test: setup  ## all tests, as CI runs them
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

test-fast: setup  ## under three minutes
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow"

# of what trains: the same tests, and a sweep of digits, on another backend of Keras
TRAINING := test_training test_network test_optimisation test_augmentation test_backends

test-jax test-torch: test-%: .venv/%/installed
	KERAS_BACKEND=$* .venv/$*/bin/python -m pytest -n 2 --dist loadfile $(TRAINING:%=tests/%.py)

# on top of .venv, whose packages it sees
.venv/%/installed: .venv/installed
	$(PYTHON) -m venv .venv/$*
	echo $(CURDIR)/.venv/lib/python3.*/site-packages > $$(echo .venv/$*/lib/python3.*/site-packages)/cnn_search.pth
	.venv/$*/bin/pip install --disable-pip-version-check -c constraints.txt $*
	touch $@

test-all: setup test-jax test-torch  ## with every kind of kill and fault, of which `make test` runs some each day
	CNN_SEARCH_ALL_FAULTS=1 $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: setup  ## as pages in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

ui: setup
	$(BIN)/python -m cnn_search.ui $(NAME)

clean:
	rm -rf .venv build site dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
