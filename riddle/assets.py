"""The networks of others, as data: where each comes from and on which terms.

Sizes and sha256 are those of the upstream file; without a sha256 a download is not checked.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath


@dataclass(frozen=True)
class Asset:
    """One file of weights."""

    name: str
    path: str  # relative to a folder of RIDDLE_WEIGHTS, to data/zoo and to the cache
    urls: tuple[str, ...] = ()  # tried in order
    size: int | None = None  # bytes
    sha256: str | None = None
    licence: str = ""
    note: str = ""  # what to do by hand
    source: str = ""  # upstream project
    made_from: tuple[str, ...] = ()  # assets that this one is converted from

    @property
    def filename(self) -> str:
        """Last part of `path`."""
        return PurePosixPath(self.path).name


def _drive(identity: str) -> str:
    return f"https://drive.usercontent.google.com/download?id={identity}&export=download&confirm=t"


_NCNN = "https://raw.githubusercontent.com/CrD1997/mobilefacenet_ncnn/905c8ef0e76a6f055c917515f853d6b4d8fe48dc/models"
_FID = "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights"
_RESEARCH = "non-commercial research"

_LISTED = [
    # recognisers
    Asset(
        "arcface-mobilefacenet", "recognizers/arcface_mobilefacenet_ms1m.safetensors",
        licence="trained on MS1M: " + _RESEARCH, source="github.com/CrD1997/mobilefacenet_ncnn",
        made_from=("mobilefacenet-ncnn-weights", "mobilefacenet-ncnn-graph"),
    ),
    Asset(
        "mobilefacenet-ncnn-weights", "recognizers/upstream/MobileFaceNet.bin", (f"{_NCNN}/MobileFaceNet.bin",),
        4091592, "9638dcfee63785b87a5ab0b0ed9f9dffe93e4b3718e5ea1b537dd5243a661b87",
        "trained on MS1M: " + _RESEARCH, source="github.com/CrD1997/mobilefacenet_ncnn",
    ),
    Asset(
        "mobilefacenet-ncnn-graph", "recognizers/upstream/MobileFaceNet.param", (f"{_NCNN}/MobileFaceNet.param",),
        20288, "bb1c1e5f8a6ea8f6ac0f738528a0418911b6208ddb2f8b27667d33b0f37bec1b",
        "trained on MS1M: " + _RESEARCH, source="github.com/CrD1997/mobilefacenet_ncnn",
    ),
    Asset(
        "edgeface-xs", "recognizers/edgeface_xs.onnx", licence="BSD-3-Clause",
        source="github.com/yayoimizuha/face_recognition_train, checkpoints/edgeface_xs_q.pt",
        note="dequantise it and export to ONNX with (x - 127.5) / 128 and unit length inside, RGB 0-255, 112 px",
    ),
    Asset(
        "mobilefacenet-casia", "recognizers/mobilefacenet_casia.onnx", licence="trained on CASIA-WebFace: " + _RESEARCH,
        source="github.com/Xiaoccer/MobileFaceNet_Pytorch, model/best/068.ckpt",
        note="export to ONNX with the crop to 112x96, (x - 127.5) / 128 and unit length inside, RGB 0-255, 112 px",
    ),
    Asset(
        "mobileface-v2", "recognizers/mobileface_v2.onnx", licence="MIT",
        source="github.com/becauseofAI/MobileFace, MobileFace_Identification_V2-0000.params",
        note="convert the MXNet files to ONNX with its scaling and unit length inside, RGB 0-255, 112 px",
    ),
    Asset(
        "facenet-vggface2", "recognizers/20180402-114759-vggface2.pt",
        ("https://github.com/timesler/facenet-pytorch/releases/download/v2.2.9/20180402-114759-vggface2.pt",),
        sha256="281cebca8662831adb987a874bdcb36e73f5b1c6dc5ee5878f305e985625d99b",
        licence="MIT; trained on VGGFace2: " + _RESEARCH, source="github.com/timesler/facenet-pytorch",
    ),
    Asset(
        "facenet-casia", "recognizers/20180408-102900-casia-webface.pt",
        ("https://github.com/timesler/facenet-pytorch/releases/download/v2.2.9/20180408-102900-casia-webface.pt",),
        licence="MIT; trained on CASIA-WebFace: " + _RESEARCH, source="github.com/timesler/facenet-pytorch",
    ),
    Asset(
        "irse50", "recognizers/model_ir_se50.pth",
        (
            "https://github.com/xinntao/facexlib/releases/download/v0.1.0/recognition_arcface_ir_se50.pth",
            _drive("1KW7bjndL3QG3sxBbZxreGHigcCCpsDgn"),
        ),
        175367323, "a035c768259b98ab1ce0e646312f48b9e1e218197a0f80ac6765e88f8b6ddf28",
        "MIT; trained on MS1M: " + _RESEARCH, source="github.com/TreB1eN/InsightFace_Pytorch",
    ),
    Asset(
        "sphereface20", "recognizers/sphere20a_20171020.pth", licence="MIT; trained on CASIA-WebFace: " + _RESEARCH,
        source="github.com/clcarwin/sphereface_pytorch, model/sphere20a_20171020.7z", note="unpack it with 7z",
    ),
    Asset(
        "curricularface-ir101", "recognizers/CurricularFace_Backbone.pth",
        (_drive("1f4IwVa2-Bn9vWLwB-bUwm53U_MlvinAj"), _drive("1upOyrPzZ5OI3p6WkA5D5JFYCeiZuaPcp")),
        licence="MIT; trained on MS1M: " + _RESEARCH, source="github.com/HuangYG123/CurricularFace",
    ),
    # the paper's scale
    Asset(
        "e4e-ffhq1024", "paper/e4e_ffhq_encode.pt", (_drive("1cUv_reLE6k3604or78EranS7XzuVMWeO"),),
        licence="MIT; trained on FFHQ (CC BY-NC-SA 4.0)", source="github.com/omertov/encoder4editing",
    ),
    Asset(
        "stylegan2-ffhq1024", "paper/stylegan2-ffhq-config-f.pt", (_drive("1EM87UquaoQmk17Q8d5kYIAHqu0dkYqdT"),),
        licence="Nvidia source code licence: " + _RESEARCH, source="github.com/rosinality/stylegan2-pytorch",
    ),
    Asset(
        "stylegan2-ffhq256", "paper/550000.pt", (_drive("1PQutd-JboOCOZqmd95XWxWrO8gGEvRcO"),),
        licence="MIT; trained on FFHQ (CC BY-NC-SA 4.0)", source="github.com/rosinality/stylegan2-pytorch",
    ),
    Asset(
        "riddle-ffhq256", "paper/riddle_ffhq256.pt", licence="of the paper's authors: " + _RESEARCH,
        source="the link under Data and Pretrain models of github.com/ldz666666/RiDDLE",
        note="the authors' encoder, generator and encryptor at 256 px, on Baidu Netdisk only",
    ),
    Asset(
        "bisenet", "paper/79999_iter.pth",
        (
            _drive("154JgKpzCPW82qINcVieuPH3fZ2e0P812"),
            "https://huggingface.co/ManyOtherFunctions/face-parse-bisent/resolve/main/79999_iter.pth",
        ),
        licence="MIT; trained on CelebAMask-HQ: " + _RESEARCH, source="github.com/zllrunning/face-parsing.PyTorch",
    ),
    # of the metrics and of LPIPS
    Asset(
        "inception", "torch/hub/checkpoints/pt_inception-2015-12-05-6726825d.pth",
        (f"{_FID}/pt_inception-2015-12-05-6726825d.pth",),
        sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
        licence="Apache-2.0", source="github.com/mseitzer/pytorch-fid",
    ),
    Asset(
        "squeezenet1_1", "torch/hub/checkpoints/squeezenet1_1-b8a52dc0.pth",
        ("https://download.pytorch.org/models/squeezenet1_1-b8a52dc0.pth",),
        sha256="b8a52dc049b60e4b6ab68ad0df457362afab8b6304b2febdc1650a5dab4d7e7b",
        licence="BSD-3-Clause; trained on ImageNet", source="torchvision",
    ),
    Asset(
        "alexnet", "torch/hub/checkpoints/alexnet-owt-7be5be79.pth",
        ("https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",),
        sha256="7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
        licence="BSD-3-Clause; trained on ImageNet", source="torchvision",
    ),
    Asset(
        "vgg16", "torch/hub/checkpoints/vgg16-397923af.pth",
        ("https://download.pytorch.org/models/vgg16-397923af.pth",),
        sha256="397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
        licence="BSD-3-Clause; trained on ImageNet", source="torchvision",
    ),
]  # fmt: skip

ASSETS = {asset.name: asset for asset in _LISTED}
