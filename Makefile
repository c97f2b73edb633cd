# make demo         train a small network, with only what that needs
# make demo-torch   the same with PyTorch too, both drawn in one picture
# make demo-jax     the same with JAX
# make demo-keras   the same with Keras, on JAX
# make test         every test, with every framework that has a door or an engine
# make test-keras-jax    those of the Keras door, on one backend
# make lint         style and types
# make bench        speed, as ratios within one run
#
# PYTHON chooses the interpreter of .venv:      make test PYTHON=python3.12
# ARGS is handed on to the command:             make demo ARGS="--epochs 10"

PYTHON ?= python3
ARGS ?=

KERAS := test-keras-torch test-keras-jax test-keras-tensorflow
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt
PINS := pyproject.toml constraints.txt
PYTEST := python -m pytest -n 2 --dist worksteal

# What JAX has compiled in one process of the tests it need not compile in another.
test-keras-jax: export JAX_COMPILATION_CACHE_DIR := $(CURDIR)/.pytest_cache/jax
test-keras-jax: export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS := 0
test-keras-jax: export JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES := -1

# What is installed is compiled when it is imported first, and kept for all later processes.
unexport PYTHONDONTWRITEBYTECODE

.DELETE_ON_ERROR:
.PHONY: demo demo-torch demo-jax demo-keras test $(KERAS) lint bench clean

demo: $(VENV)/.installed-demo
	$(BIN)/oneadam demo $(ARGS)

demo-torch: $(VENV)/.installed-torch
	$(BIN)/oneadam demo --framework torch $(ARGS)

demo-jax: $(VENV)/.installed-jax
	$(BIN)/oneadam demo --framework jax $(ARGS)

demo-keras: $(VENV)/.installed-keras
	$(BIN)/oneadam demo --framework keras --backend jax $(ARGS)

test: $(VENV)/.installed-all
	env -u KERAS_BACKEND $(BIN)/$(PYTEST) $(ARGS)
	$(if $(ARGS),,$(MAKE) $(KERAS))

# Keras runs on one backend in each process. Left out are long runs of arithmetic that the doors
# for JAX and PyTorch have already shown, and what XLA takes long to compile.
LEFT_OUT = almost_one or thousand or extreme or large
test-keras-tensorflow: LEFT_OUT = thousand and noisy or compiled and \
	(almost_one or thousand or extreme or large or under_a_dynamic)
$(KERAS): test-keras-%: $(VENV)/.installed-all
	KERAS_BACKEND=$* TF_CPP_MIN_LOG_LEVEL=3 $(BIN)/$(PYTEST) \
		--hypothesis-profile=quick -k "not ($(LEFT_OUT))" \
		$(or $(ARGS),tests/keras tests/test_conformance.py tests/test_transposed.py)

lint: $(VENV)/.installed-all
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed-all
	$(BIN)/python -m benchmarks $(ARGS)

clean:
	rm -rf $(VENV) build dist

# Each stamp is written last, so that an interrupted installation is taken up again.
$(VENV)/.made:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 10) and "oneadam needs Python 3.10 or newer and $(PYTHON) is %d.%d: make PYTHON=..." % v[:2])'
	@echo "Making $(VENV) with $(PYTHON), once."
	@$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/.installed-demo: $(PINS) | $(VENV)/.made
	@echo "Installing oneadam and what its demo needs into $(VENV), once; about a minute."
	@$(PIP) -e '.[cli]'
	@touch $@

$(VENV)/.installed-torch: $(PINS) | $(VENV)/.made
	@echo "Installing oneadam, its demo and PyTorch into $(VENV), once; some minutes."
	@$(PIP) torch==2.13.0 -e '.[cli,torch]'
	@touch $(VENV)/.installed-demo $@

$(VENV)/.installed-jax: $(PINS) | $(VENV)/.made
	@echo "Installing oneadam, its demo and JAX into $(VENV), once; a minute or two."
	@$(PIP) -e '.[cli,jax]'
	@touch $(VENV)/.installed-demo $@

$(VENV)/.installed-keras: $(PINS) | $(VENV)/.made
	@echo "Installing oneadam, its demo, Keras and JAX into $(VENV), once; a minute or two."
	@$(PIP) -e '.[cli,keras,jax]'
	@touch $(addprefix $(VENV)/.installed-,demo jax) $@

$(VENV)/.installed-all: $(PINS) | $(VENV)/.made
	@echo "Installing oneadam, its tools and all frameworks into $(VENV), once; some minutes."
	@$(PIP) torch==2.13.0 keras tensorflow-cpu flax equinox orbax-checkpoint -e '.[cli,jax,lightning,transformers,test,dev]'
	@touch $(addprefix $(VENV)/.installed-,demo torch jax keras) $@
