#!/usr/bin/env python3
"""Fuzzes for FUZZ_SECONDS (an hour): half of it by libFuzzer, half by hypothesis. Ends with the first failure.

libFuzzer: the programs of tests/fuzz, built by the preset `fuzz` (clang); what they find interesting is kept in
build-fuzz/corpus, inputs that fail in build-fuzz/found. Hypothesis: tests/python/fuzz, seed after seed; a failing seed
is printed and repeated by `pytest --hypothesis-seed=SEED tests/python/fuzz` with the same KF_FUZZ_EXAMPLES.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = ("attention", "weights")
EXAMPLES = "200"


def run(*command: str, **options) -> None:
    print("==", *command, flush=True)
    if code := subprocess.run(command, cwd=ROOT, **options).returncode:
        sys.exit(code)


def libfuzzer(seconds: float) -> None:
    if shutil.which("clang++") is None:
        sys.exit("fuzz: clang++ is missing: apt-get install clang libomp-dev")
    run("cmake", "--preset", "fuzz")
    run("cmake", "--build", "--preset", "fuzz", "-j", str(os.cpu_count()), *(f"--target=kf_fuzz_{p}" for p in PROGRAMS))
    for program in PROGRAMS:
        corpus, found = ROOT / "build-fuzz/corpus" / program, ROOT / "build-fuzz/found" / program
        corpus.mkdir(parents=True, exist_ok=True)
        found.mkdir(parents=True, exist_ok=True)
        # OpenMP's threads live on: their stacks would count as leaks.
        environment = os.environ | {"OMP_NUM_THREADS": "2", "ASAN_OPTIONS": "detect_leaks=0"}
        run(
            f"build-fuzz/kf_fuzz_{program}",
            f"-max_total_time={int(seconds / len(PROGRAMS))}",
            "-max_len=4096",
            "-len_control=0",  # runs are few a second: inputs would stay a few bytes long
            "-timeout=60",
            f"-artifact_prefix={found}/",
            str(corpus),
            env=environment,
        )


def hypothesis(seconds: float) -> None:
    end, seed = time.monotonic() + seconds, int(time.time())
    while time.monotonic() < end:
        run(
            str(ROOT / ".venv/bin/python"),
            "-m",
            "pytest",
            "-x",
            "-q",
            f"--hypothesis-seed={seed}",
            "tests/python/fuzz",
            env=os.environ | {"KF_FUZZ_EXAMPLES": EXAMPLES},
        )
        seed += 1


if __name__ == "__main__":
    total = float(os.environ.get("FUZZ_SECONDS", "3600"))
    libfuzzer(total / 2)
    hypothesis(total / 2)
