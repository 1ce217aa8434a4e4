"""What this machine's processor can do: it decides whether INT8 is faster than FP32."""

from __future__ import annotations

import platform
from pathlib import Path

# 8-bit dot products (VNNI, AMX, the Arm dot product) are what INT8's speed comes from; the others say how wide a vector is.
OF_INTEREST = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")


def _cpuinfo(key: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), "")


def cpu_name() -> str:
    """The processor's name, or its architecture where the system does not tell."""
    return _cpuinfo("model name") or platform.machine()


def cpu_features() -> list[str]:
    """Those of its features that matter to INT8, in a fixed order."""
    flags = set((_cpuinfo("flags") or _cpuinfo("Features")).split())
    return [feature for feature in OF_INTEREST if feature in flags]
