"""Networks in .onnx files, run by onnxruntime, which loads only when one is used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


class OnnxNetwork(nn.Module):
    """An ArcFace-style .onnx file. No gradients.

    Input: (N, 3, S, S) RGB, S read from the file. A file whose input is called `image` takes 0-255 and scales inside;
    any other takes [-1, 1], as InsightFace's do. Threads are PyTorch's number.
    """

    def __init__(self, path: Path):
        super().__init__()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # leave the cores to others
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        entry, *more = self.session.get_inputs()
        if more or len(entry.shape) != 4 or entry.shape[1] not in (3, "3"):
            raise ValueError(f"{path} is not an ArcFace-style network: its input is {entry.name} {entry.shape}")
        self.input, self.raw = entry.name, entry.name == "image"
        self.size = entry.shape[2] if isinstance(entry.shape[2], int) else 112
        self.batched = not isinstance(entry.shape[0], int)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pixels = x.detach().float().cpu().contiguous()
        pixels = ((pixels + 1) * 127.5 if self.raw else pixels).numpy()
        parts = [pixels] if self.batched else np.split(pixels, len(pixels))
        out = np.concatenate([self.session.run(None, {self.input: p})[0] for p in parts])
        return F.normalize(torch.from_numpy(out), dim=1).to(x.device)
