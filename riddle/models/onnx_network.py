"""Networks in .onnx files, run by onnxruntime, which loads only when one is used."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn


class OnnxNetwork(nn.Module):
    """(N, 3, 112, 112) RGB in [-1, 1], aligned as for ArcFace -> (N, E) of unit length, without gradients.

    The file takes 0 to 255. Threads are PyTorch's number.
    """

    def __init__(self, path: Path):
        super().__init__()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # leave the cores to others
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pixels = (x.detach().float().cpu().contiguous() + 1) * 127.5
        (out,) = self.session.run(None, {"image": pixels.numpy()})
        return F.normalize(torch.from_numpy(out), dim=1).to(x.device)
