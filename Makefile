# kf. The two commands: `make demo` and `make test`; both install what they need (Debian packages as root).

JOBS ?= $(shell nproc)
SCHEMAS := .cache/vendors/torch_npu-2.14.0.json
MODEL := .cache/models/SmolLM2-135M-Instruct.Q4_1.gguf
PYTHON := .venv/bin/python
PYTHONS ?= python3
# For `make demo`: what to compile for where there is a GPU; empty elsewhere.
GPU := $(if $(filter demo build-gpu,$(MAKECMDGOALS)),$(shell scripts/gpu_architecture.sh))
# Its embedding takes no 4-bit table.
ON_GPU := $(if $(GPU),--device cuda --weights f32)
# Builds of the same sources share ccache's results, wherever they lie.
export CCACHE_BASEDIR := $(CURDIR)

.PHONY: help setup build build-gpu demo test test-cpp test-python test-sanitize test-arm64 test-gpu test-cuda-build test-hip-build test-install fuzz peers bench wheel wheel-arm64 docs docs-site clean

help:
	@sed -n 's/^## //p' Makefile

## make demo            build (for the GPU where there is one), generate text with SmolLM2-135M, and measure unfused against fused (report/)
demo: TARGETS := --target _kf
demo: $(if $(GPU),build-gpu,build) $(MODEL)
	@echo "== the device and what it offers"
	@.venv/bin/kf info --brief
	@echo "== text from the fused engine"
	@.venv/bin/kf generate $(MODEL) "What is kernel fusion, in one sentence?" --chat --max-new-tokens 48 $(ON_GPU)
	@echo "== unfused against fused on $(MODEL)"
	@.venv/bin/kf bench model $(MODEL) --quick --out report $(ON_GPU)

# The CUDA backend for this machine's GPU alone.
build-gpu: setup
	@echo "== building for the GPU"
	@nvcc=$$(scripts/cuda_compiler.sh --least) && CUDACXX=$$nvcc cmake --preset cuda -DKF_CUDA_ARCHITECTURES=$(GPU) \
	  -DKF_BUILD_PYTHON=ON -DPython_EXECUTABLE=$(CURDIR)/$(PYTHON) -B build-gpu >build.log 2>&1 || { cat build.log; exit 1; }
	@cmake --build build-gpu -j $(JOBS) $(TARGETS)
	@scripts/link_package.sh

## make test            all tests: C++, Python, the installed package; and the documentation site
test: test-cpp test-python test-install docs-site

setup:
	@scripts/setup.sh requirements/build.txt requirements/runtime.txt

# One build tree serves the C++ library, the tests, the tools and the Python extension. The demo needs the last alone.
## make build           the library, the tests, the tools and the Python extension in build/, the command in .venv/bin/kf
build: setup
	@echo "== building"
	@cmake --preset release -DKF_BUILD_PYTHON=ON -DPython_EXECUTABLE=$(CURDIR)/$(PYTHON) >build.log 2>&1 || { cat build.log; exit 1; }
	@cmake --build build -j $(JOBS) $(TARGETS)
	@scripts/link_package.sh

test-cpp: build
	@echo "== C++ tests"
	@ctest --test-dir build -j $(JOBS) --output-on-failure

test-python: build $(MODEL) $(SCHEMAS)
	@scripts/setup.sh requirements/test.txt requirements/paddle.txt
	@echo "== Python tests"
	@KF_REQUIRE_ALL=1 $(PYTHON) -m pytest -q tests/python

## make test-sanitize   the C++ tests under AddressSanitizer and UndefinedBehaviorSanitizer
test-sanitize: setup
	@echo "== C++ tests under AddressSanitizer and UndefinedBehaviorSanitizer"
	@cmake --preset sanitize >build-sanitize.log 2>&1 || { cat build-sanitize.log; exit 1; }
	@cmake --build build-sanitize -j $(JOBS)
	@ctest --test-dir build-sanitize -j $(JOBS) --output-on-failure

## make test-arm64      cross-compiled for 64-bit Arm, under qemu: the CPU backend over short sets of cases (NEON, SVE), and a wheel that is installed
test-arm64: setup
	@JOBS=$(JOBS) scripts/test_arm64.sh
	@scripts/setup.sh requirements/wheel.txt
	@rm -rf build-arm64/dist
	@scripts/build_arm64_wheel.sh build-arm64/dist Quick
	@tests/install/arm64_wheel.sh build-arm64/dist/*.whl

## make test-gpu        the CUDA backend on a GPU: the cases against the CPU's reference, and the Python face (needs the toolkit)
test-gpu: setup
	@echo "== the CUDA backend"
	@nvcc=$$(scripts/cuda_compiler.sh) && scripts/setup.sh requirements/build.txt requirements/runtime.txt && \
	  CUDACXX=$$nvcc cmake --preset cuda -DKF_BUILD_PYTHON=ON -DPython_EXECUTABLE=$(CURDIR)/$(PYTHON) >build-cuda.log 2>&1 || { cat build-cuda.log; exit 1; }
	@cmake --build build-cuda -j $(JOBS) --target kf_tests kf_bench_device kf_bench_model _kf
	@scripts/link_package.sh
	@KF_REQUIRE_ALL=1 build-cuda/kf_tests --gtest_filter='Accelerators*'
	@$(PYTHON) -m pytest -q tests/gpu

## make test-cuda-build the CUDA backend compiled for one architecture and linked, and what it decides without a device
test-cuda-build: setup
	@echo "== the CUDA backend, without a device"
	@nvcc=$$(scripts/cuda_compiler.sh) && CUDACXX=$$nvcc cmake --preset cuda-check >build-cuda-check.log 2>&1 || { cat build-cuda-check.log; exit 1; }
	@cmake --build build-cuda-check -j $(JOBS) --target kf_tests kf_info
	@build-cuda-check/kf_tests --gtest_brief=1 --gtest_filter='Accelerators*:Cuda*'
	@build-cuda-check/kf_info | grep -q 'cuda'
	@! nm build-cuda-check/CMakeFiles/kf.dir/src/backends/cuda/attention/cudnn.cpp.o 2>/dev/null | grep ' u ' # shared with PyTorch's

## make test-hip-build  the ROCm backend's kernels compiled for gfx906 and gfx90a (Debian's hipcc), their registers and waves checked
test-hip-build: setup
	@echo "== the kernels of the ROCm backend, without a device"
	@scripts/test_hip_build.sh $(JOBS)

## make fuzz            fuzzes for an hour (FUZZ_SECONDS): libFuzzer on attention and weights, hypothesis on the Python face
fuzz: build
	@scripts/setup.sh requirements/test.txt
	@$(PYTHON) scripts/fuzz.py

test-install: build $(MODEL)
	@scripts/setup.sh requirements/wheel.txt
	@echo "== the installed library, from a separate CMake project; source distribution and wheel, in a clean environment"
	@tests/install/run.sh

$(MODEL): setup
	@test -f $@ || $(PYTHON) scripts/get_model.py

$(SCHEMAS): setup
	@test -f $@ || $(PYTHON) scripts/get_vendor_schemas.py

## make peers           install PyTorch, transformers and llama.cpp in .venv-peers for the comparisons in bench/peers
peers: build
	@scripts/setup_peers.sh

## make bench           the benchmark cases: unfused against fused
bench: build
	@build/kf_bench

## make wheel           a source distribution, and wheels that carry their libraries, in dist/, for each of PYTHONS (python3)
wheel: setup
	@scripts/setup.sh requirements/wheel.txt
	@scripts/build_sdist.sh dist
	@scripts/build_wheel.sh . dist $(PYTHONS)

## make wheel-arm64     a wheel for 64-bit Arm in dist/, cross-compiled
wheel-arm64: setup
	@scripts/setup.sh requirements/wheel.txt
	@scripts/build_arm64_wheel.sh dist

## make docs            regenerate docs/support-matrix.md, and the tables of rows in docs/backends/
docs: build
	@scripts/support_matrix.sh build/kf_matrix
	@$(PYTHON) scripts/vendor_tables.py

## make docs-site       the documentation with a reference of Python and C++, as a site in build-docs/html
docs-site: build
	@scripts/setup.sh requirements/docs.txt
	@echo "== the documentation site: every link and every public name"
	@scripts/docs_site.sh

clean:
	rm -rf build build-arm64 build-arm64-sve build-docs build-gpu build-cuda build-cuda-check build-hip build-hip-check build-sanitize build-fuzz build-python-* dist report
