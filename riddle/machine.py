"""Speed on this machine: keep memory, and use bfloat16 where it is faster."""

from __future__ import annotations

import ctypes
import sys
import time
from functools import cache

import torch
import torch.nn.functional as F

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # names of malloc.h, M_...


def keep_memory() -> bool:
    """Serve large blocks from the heap and never give it back; True where that could be set (glibc).

    On Linux, glibc otherwise returns every large tensor to the kernel and pays for its pages again at the next step.
    Measured on a training step of the encryptor: a third of the CPU time. The process then holds its peak until it
    ends, so call it in programs that train or render in batches, not on import.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # musl has none
        return False
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_TOP_PAD, 256 << 20))
    return all([mallopt(name, value) == 1 for name, value in settings])


@cache
def bfloat16_is_faster(device: str | torch.device = "cpu") -> bool:
    """True if a convolution like the generator's runs faster in bfloat16 than in float32: measured, a few ms.

    A GPU with bfloat16 and a CPU with AMX gain severalfold; of CPUs with the AVX512-bf16 instructions alone one took
    twice as long in them, another half as long (measured: 168 against 291, and 602 against 325 GFLOP/s on two cores).
    A CPU with AVX2 alone takes seven times as long (19 against 134 GFLOP/s).
    """
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    seconds = {}
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        for dtype in (torch.float32, torch.bfloat16):
            x = torch.ones(4, 128, 32, 32, dtype=dtype).contiguous(memory_format=torch.channels_last)
            weight = torch.ones(128, 128, 3, 3, dtype=dtype)
            runs = []
            for _ in range(4):  # the first one compiles
                began = time.perf_counter()
                F.conv2d(x, weight, padding=1)
                runs.append(time.perf_counter() - began)
            seconds[dtype] = min(runs[1:])
    return seconds[torch.bfloat16] < seconds[torch.float32]


def fast_autocast(device: str | torch.device) -> torch.autocast:
    """Autocast to bfloat16 where that is faster (`bfloat16_is_faster`); elsewhere everything inside is float32."""
    device = torch.device(device)
    return torch.autocast(device.type, torch.bfloat16, enabled=bfloat16_is_faster(device))
