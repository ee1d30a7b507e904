"""Keep freed memory in the process: on Linux, glibc otherwise returns every large tensor to the kernel and pays for
its pages again at the next step. Measured on a training step of the encryptor: a third of the CPU time.
"""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # names of malloc.h, M_...


def keep_memory(top_pad: int = 256 << 20) -> bool:
    """Serve large blocks from the heap and never give it back; True where that could be set (glibc).

    top_pad: bytes by which the heap grows at a time. The process then holds its peak until it ends, so call it in
    programs that train or render in batches, not on import.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # musl has none
        return False
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_TOP_PAD, top_pad))
    return all([mallopt(name, value) == 1 for name, value in settings])
