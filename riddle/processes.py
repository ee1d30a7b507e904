"""Worker processes that end with the process that started them."""

from __future__ import annotations

import multiprocessing
import os
import threading


def end_with_parent() -> None:
    """In a worker of `multiprocessing`: exit when the process that started it is gone, killed ones included.

    A pool's workers wait for work that would never come. For the `initializer` of a pool.
    """

    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
