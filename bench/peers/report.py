"""What every result file says besides its rows: the machine, the versions, the date."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
from pathlib import Path

PACKAGES = ("torch", "transformers", "llama-cpp-python", "gguf", "tokenizers", "numpy", "sagellm-kernel-fusion")


def device() -> dict:
    """The processor, its cores, its memory and the instruction sets that decide speed."""
    fields = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    flags = set(fields.get("flags", "").split())
    known = ("avx2", "fma", "f16c", "avx512f", "avx512_bf16", "avx512_vnni", "amx_tile")
    return {
        "name": fields.get("model name", platform.processor()),
        "cores": os.cpu_count(),
        "cache": fields.get("cache size", "?"),
        "isa": [flag for flag in known if flag in flags],
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": f"{platform.system()} {platform.release()}",
    }


class Watch:
    """How much processor time others took while we measured: near 0, or the figures are not to be trusted."""

    def __init__(self):
        self.start = self._now()

    @staticmethod
    def _now() -> tuple[float, float]:
        """Busy seconds of the whole machine (stolen time too), and of this process."""
        user, nice, system, _idle, _wait, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
        busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
        return busy, sum(os.times()[:2])

    def foreign_cpu_s(self) -> float:
        busy, own = (now - then for now, then in zip(self._now(), self.start, strict=True))
        return round(max(0.0, busy - own), 1)


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}
    return {name: value for name, value in found.items() if value}


def write(path: Path, kind: str, rows: list[dict], watch: Watch, **more) -> None:
    """Write rows with their circumstances as one JSON file."""
    foreign = watch.foreign_cpu_s()
    body = {
        "kind": kind,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "device": device(),
        "versions": versions(),
        "foreign_cpu_s": foreign,
        **more,
        "rows": rows,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(body, indent=1) + "\n")
    print(f"wrote {path} (others used {foreign} s of processor time meanwhile)")
