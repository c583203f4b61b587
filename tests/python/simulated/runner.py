"""Runs the tests of simulated devices, each script in a process of its own, since PyTorch has one device of plug-ins:
forked from this one, which has imported what they all need.

A request is a line of JSON: script, options of pytest, the environment, and folders to import from. The answer is one,
too: the exit code and what was printed."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

import pytest
import torch.distributed.tensor  # noqa: F401  what torch.testing.assert_close imports when it is called
from transformers import LlamaForCausalLM  # noqa: F401

import sagellm_kernel_fusion  # noqa: F401

FOLDER = Path(__file__).parent


def run(script: str, options: list[str], environment: dict[str, str], folders: list[str]) -> int:
    os.environ.clear()
    os.environ.update(environment, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    sys.path[:0] = folders
    return pytest.main(["-q", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", str(FOLDER), "--confcutdir",
                        str(FOLDER), str(FOLDER / script), *options])  # fmt: skip


def main() -> None:
    for line in sys.stdin:
        with tempfile.TemporaryFile() as printed:
            if (child := os.fork()) == 0:
                os.dup2(printed.fileno(), 1)
                os.dup2(printed.fileno(), 2)
                status = 70  # of a runner that fails itself
                try:
                    status = int(run(**json.loads(line)))
                finally:
                    sys.stdout.flush()
                    sys.stderr.flush()
                    os._exit(status)
            _, status = os.waitpid(child, 0)
            printed.seek(0)
            text = printed.read().decode(errors="replace")
        print(json.dumps({"status": os.waitstatus_to_exitcode(status), "printed": text}), flush=True)


if __name__ == "__main__":
    main()
