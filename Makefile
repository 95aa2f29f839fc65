# Each target is complete on a fresh machine with Python 3.11+, make and a C++ compiler: it makes its own virtual environment in .venv first.
PYTHON ?= python3
VENV := .venv
TORCH := torch==2.13.0
OP_TESTS := $(patsubst %,tests/test_%.py,interp merge_scores predict segmentation_loss domain_transform dense_crf confusion_matrix \
	ops_autograd ops_device ops_storage)

.PHONY: table1 test test-matrix test-torch attack lint registers sanitize emulated cuda-build gpu clean

table1: $(VENV)/installed
	$(VENV)/bin/python -m repro.run table1 $(TABLE1)

# As many tests at a time as there are cores, four at most.
PYTEST := $(VENV)/bin/python -m pytest -n auto --maxprocesses 4
test: $(VENV)/installed
	$(PYTEST) $(TESTS)

# The same tests as on processors with fewer instructions, with 1, 2 and 4 threads; MATRIX="avx2 -- -k solver" chooses.
test-matrix: $(VENV)/installed
	$(VENV)/bin/python tests/matrix.py $(MATRIX)

# What touches torch most, with the oldest that pyproject.toml allows, or another; in a clone, for what is built lies in the checkout. (`make cuda-build` takes a new one.)
OTHER_TORCH := torch==2.6.0
test-torch:
	rm -rf "build/$(OTHER_TORCH)" && git clone --quiet . "build/$(OTHER_TORCH)"
	REPRO_CUDA=0 $(MAKE) --directory "build/$(OTHER_TORCH)" TORCH="$(OTHER_TORCH)" test \
		TESTS="$(OP_TESTS) tests/test_ops_determinism.py tests/test_network.py tests/test_caffe_fuse.py tests/test_distributed.py"

# Hostile input of every kind (SECURITY.md): slow, and as root also on disks that are too small.
attack: $(VENV)/installed
	$(VENV)/bin/python -m pytest -m slow tests/test_attack_settings.py tests/test_attack_files.py tests/test_attack_runs.py \
		tests/test_attack_disk.py tests/test_run_killed.py tests/test_distributed_killed.py

lint: $(VENV)/installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/clang-format --dry-run -Werror $$(git ls-files '*.cpp' '*.h' '*.cu' '*.cuh')

# Registers, shared memory and spills of every CUDA kernel, for sm_80 and sm_90; needs nvcc, but neither a GPU nor .venv.
registers:
	@$(PYTHON) csrc/cuda/registers.py

# Evidence from this machine's GPU in runs/gpu/ (CONTRIBUTING.md); GPU="--steps smoke" chooses. A python that has torch for CUDA is taken as it is.
gpu:
	@python=$(PYTHON); $(PYTHON) -c 'import torch; assert torch.version.cuda' 2>/dev/null || \
		{ $(MAKE) $(VENV)/installed && python=$(VENV)/bin/python; } || exit 1; \
	$$python -m repro.bench.evidence $(GPU)

# The operators' tests on kernels that watch their addresses and undefined behaviour; the usual build stays as it is, and shows the
# warnings. What a sanitizer says as it ends the process is not kept back by pytest.
# This build has no clones for wider processors (csrc/cpu/lanes.h): its bits are compared with the usual build's.
SANITIZE := -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
SANITIZING = LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 PYTHONPATH=build/sanitize
sanitize: $(VENV)/installed
	mkdir -p build/sanitize && cp -r repro build/sanitize && rm -f build/sanitize/repro/_C*.so
	REPRO_CUDA=0 REPRO_OPTIMIZE=-O1 CFLAGS="$(SANITIZE) -g1 -w" LDFLAGS="$(SANITIZE)" $(VENV)/bin/python setup.py --quiet \
		build_ext --build-lib build/sanitize --build-temp build/sanitize-temp
	$(SANITIZING) $(VENV)/bin/python -P -m pytest -p no:cacheprovider --capture=sys $(OP_TESTS) tests/test_ops_determinism.py
	$(VENV)/bin/python tests/same_bits.py . > build/bits
	$(SANITIZING) $(VENV)/bin/python -P tests/same_bits.py build/sanitize | diff build/bits -
	@echo "sanitize: $$(wc -l < build/bits) results with the usual build's bits"

# The operators' tests on the CUDA side, kernels and glue, run by the host thread after thread (tests/emulated); needs no GPU. test_ops_determinism
# is left out: it is about the host's threads, takes minutes, and here every call runs in two orders of threads anyway.
emulated: $(VENV)/installed
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(VENV)/bin/python tests/emulated/build.py
	PYTHONPATH=build/emulated $(VENV)/bin/python -P -m pytest -p no:cacheprovider --capture=sys -k "not nvcc_compiles" $(OP_TESTS) tests/test_ops_nonfinite.py tests/test_cuda_sources.py

# The extension for CUDA against a torch built for it, in a virtual environment of its own under build/: several GB, nvcc, and no GPU.
cuda-build:
	$(PYTHON) tests/cuda_build.py $(CUDA_BUILD) $(OP_TESTS)

# torch comes first: the extension is compiled against the torch that will load it.
$(VENV)/installed: setup.py pyproject.toml $(shell find csrc -type f)
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet $(TORCH) numpy setuptools wheel ninja pybind11
	$(VENV)/bin/pip install --quiet --no-build-isolation --editable ".[test,coco]"
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info repro/*.so
