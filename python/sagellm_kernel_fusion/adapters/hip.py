"""Which devices PyTorch has by HIP, and whether another project's kernels are for them."""

from __future__ import annotations


def architectures() -> list[str]:
    """Of every device."""
    import torch

    if torch.version.hip is None or not torch.cuda.is_available():
        return []
    found = (torch.cuda.get_device_properties(i).gcnArchName for i in range(torch.cuda.device_count()))
    return [name.partition(":")[0] for name in found]


def lacking(project: str, built_for: tuple[str, ...]) -> str | None:
    """Why its kernels cannot run here."""
    found = architectures()
    if not found:
        return f"PyTorch has no device by HIP: {project}'s kernels for ROCm cannot run"
    if others := [name for name in found if name not in built_for]:
        return f"{project} has kernels for {', '.join(built_for)} by ROCm, and there is {', '.join(others)}"
    return None
