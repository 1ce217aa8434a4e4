"""The features of this machine's processor. They decide whether INT8 is faster than FP32, and the last bits of every result."""

from __future__ import annotations

import os
import platform
import re
from importlib.metadata import version
from pathlib import Path

# INT8 is fast because of 8-bit dot products (VNNI, AMX, the Arm dot product); the other features tell the width of vectors.
OF_INTEREST = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")

# Linux lists about 150 flags. Most of them (mitigations, timers, topology, paging, virtualization) do not affect arithmetic and
# differ between equal processors, since each kernel and hypervisor shows other ones. Libraries choose their kernels by the
# families of arithmetic instructions, so all members of these families count, also future ones.
COMPUTES = re.compile(
    r"mmx|sse|ssse|pni|avx|amx|fma|f16c|xop|3dnow|bmi|abm|popcnt|adx|v?aes|v?pclmul|gfni|sha|sm\d"  # x86
    r"|fp|asimd|sve|sme(?!p)|i8mm|bf16|fcma|frint|jscvt|pmull"  # Arm
)


def _cpuinfo(key: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    pairs = (line.split(":", 1) for line in lines if ":" in line)
    return next((value.strip() for name, value in pairs if name.strip() == key), "")


def cpu_name() -> str:
    """The processor's name, or its architecture if the system does not tell the name."""
    return _cpuinfo("model name") or platform.machine()


def _flags() -> list[str]:
    return (_cpuinfo("flags") or _cpuinfo("Features")).split()


def cpu_features() -> list[str]:
    """The processor's features that matter for INT8, in a fixed order."""
    flags = set(_flags())
    return [feature for feature in OF_INTEREST if feature in flags]


def kind() -> dict[str, str]:
    """Everything that decides the bits of a result: two machines of the same kind give the same results.

    The maker, the family and the model number are included, since libraries also choose kernels by the maker and by the sizes of
    caches. The name is left out: two different processors may both be called "AMD EPYC", and one processor may have several names.
    Torch's threads share a sum, so their number decides its last bits.
    """
    import onnxruntime  # from either of its packages: onnxruntime or onnxruntime-gpu

    numbers = ("vendor_id", "cpu family", "model", "CPU implementer", "CPU part")
    return {
        "processor": " ".join([platform.machine(), *filter(None, map(_cpuinfo, numbers))]),
        "features": " ".join(sorted(flag for flag in set(_flags()) if COMPUTES.match(flag))),
        "threads": os.environ["OMP_NUM_THREADS"],  # `loopline` sets it unless the user has done so
        "torch": version("torch"),
        "onnxruntime": onnxruntime.__version__,
    }
