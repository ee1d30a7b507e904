"""Worker processes that end with the process that started them."""

from __future__ import annotations

import multiprocessing
import os
import threading
from typing import Any


def end_with_parent(*_: Any) -> None:
    """In a worker of `multiprocessing`: exit at once when the process that started it is gone, killed ones included.

    For the `initializer` of a pool, whose workers would wait for work for ever, and the `worker_init_fn` of a
    DataLoader, whose workers notice by themselves only between two items, and never if they had not begun by then.
    """

    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
