"""Face parsing: label geometry, metrics against naive counts, published names, and a training that learns."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.ndimage import maximum_filter, minimum_filter

from riddle.faces.alignment import crop, framing_matrix
from riddle.models.parsing import CLASSES, MIRRORED, PARTS, ParsingNet, parts
from riddle.training import parsing
from riddle.training.parsing import ParsingConfig, augment, class_weights, crop_mask, evaluate
from riddle.weights import load_metadata, load_tensors

pytestmark = pytest.mark.usefixtures("own_precision")


def test_parts_are_the_eyes_ears_mouth_and_nose():
    assert PARTS == (2, 4, 5, 8, 9, 10, 11, 12)
    logits = torch.randn(2, 19, 4, 4)
    assert torch.equal(parts(logits)[:, 1], logits[:, 4])


def test_a_mirror_image_swaps_left_and_right_names():
    for name, mirrored in zip(CLASSES, (CLASSES[i] for i in MIRRORED), strict=True):
        pair = {"l_eye": "r_eye", "l_brow": "r_brow", "l_ear": "r_ear"}
        assert mirrored == {**pair, **{v: k for k, v in pair.items()}}.get(name, name)


@pytest.mark.parametrize("side", [32, 64, 128])
def test_parser_gives_logits_of_the_faces_size(side):
    net = ParsingNet().eval()
    assert net(torch.randn(2, 3, side, side)).shape == (2, 19, side, side)
    assert sum(p.numel() for p in net.parameters()) < 1e6
    with pytest.raises(ValueError, match="16 divides"):
        net(torch.randn(1, 3, 40, 40))


def test_iou_equals_sets_of_pixels():
    """Over several batches, for a parser that gives the class written into the first colour."""
    truth, predicted = torch.randint(0, 5, (60, 8, 8)).byte(), torch.randint(0, 5, (60, 8, 8)).byte()
    net = torch.nn.Conv2d(3, 1, 1)
    net.forward = lambda x: F.one_hot(((x[:, 0] + 1) * 127.5).round().long(), len(CLASSES)).permute(0, 3, 1, 2)
    iou = evaluate(net, {"faces": predicted[..., None].expand(-1, -1, -1, 3), "masks": truth})
    for c in range(5):
        a, b = (truth == c), (predicted == c)
        assert iou[c].item() == pytest.approx((a & b).sum().item() / (a | b).sum().item())
    assert torch.isnan(iou[5:]).all()


@pytest.mark.parametrize("offset", [0, -60])
def test_a_masks_crop_shows_the_same_pixels_as_the_faces(offset):
    """A picture whose colour is its class: both crops must agree, inside the photo and in the mirrored border."""
    ids = np.zeros((160, 160), np.uint8)
    ids[40:90, 30:130], ids[100:130, 60:100] = 1, 2
    ids[0:20] = 3
    photo = Image.fromarray(np.stack([80 * ids] * 3, 2).astype(np.uint8))
    matrix = framing_matrix(np.array([[66, 70], [94, 66], [82, 82], [70, 98], [94, 94]], float) + offset / 2)
    faces = np.asarray(crop(photo, matrix, 64)).astype(float)[..., 0] / 80
    mask = crop_mask(ids, matrix, 64).astype(float)
    inner = minimum_filter(mask, 3) == maximum_filter(mask, 3)  # off the borders of regions, where photos blur
    assert set(np.unique(mask[inner])) - {0.0} and inner.mean() > 0.5
    assert (np.abs(faces - mask)[inner] > 0.1).mean() < 0.002


def test_class_weights_average_to_one_and_favour_the_rare():
    masks = torch.zeros(1, 10, 10, dtype=torch.uint8)
    masks[0, 0, :4] = 7
    plain, rare = class_weights(masks, 0.0), class_weights(masks, 0.5)
    assert plain[0] == pytest.approx(1) and plain[7] == pytest.approx(1) and plain[3] == 0
    assert 0.96 * rare[0].item() + 0.04 * rare[7].item() == pytest.approx(1, abs=1e-6)
    assert rare[7] / rare[0] == pytest.approx((0.96 / 0.04) ** 0.5, rel=1e-5)


def test_augmentation_moves_a_mask_as_it_moves_the_face():
    masks = torch.zeros(16, 32, 32, dtype=torch.uint8)
    masks[:, 8:20, 4:14] = CLASSES.index("l_eye")
    shown = (masks > 0).float()[:, None].expand(-1, 3, -1, -1) * 2 - 1
    faces, moved = augment(shown, masks, ParsingConfig(out="", colour=0.0, blurred=0.0, grain=0.0))
    bright = faces[:, 0] > 0
    assert ((moved > 0) == bright).float().mean() > 0.985
    kinds = {int(m.max()) for m in moved}
    assert kinds == {CLASSES.index("l_eye"), CLASSES.index("r_eye")}  # mirrored ones changed names


def synthetic(n: int) -> dict[str, torch.Tensor]:
    """Discs (skin) with two dots (the eyes) on a plain ground, in colours that vary."""
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    masks = torch.zeros(n, 32, 32, dtype=torch.uint8)
    faces = torch.zeros(n, 32, 32, 3)
    for i in range(n):
        cx, cy = 16 + 3 * torch.randn(2)
        masks[i][(x - cx) ** 2 + (y - cy) ** 2 < 100] = 1
        masks[i][(x - cx + 4) ** 2 + (y - cy + 3) ** 2 < 5] = 4
        masks[i][(x - cx - 4) ** 2 + (y - cy + 3) ** 2 < 5] = 5
        palette = torch.tensor([40.0, 170, 0, 0, 90, 90])[:, None] + 12 * torch.randn(6, 3)
        faces[i] = palette[masks[i].long()]
    return {"faces": (faces + 5 * torch.randn_like(faces)).clamp(0, 255).byte(), "masks": masks}


def test_the_command_trains_a_parser_that_learns(tmp_path, monkeypatch):
    torch.set_num_threads(1)
    data = {"train": synthetic(48), "val": synthetic(16)}
    monkeypatch.setattr(parsing, "masked_faces", lambda preset, split: data[split])
    options = "--preset smoke --steps 90 --batch 8 --save-every 30 --log-every 30 --warmup 0.1 --no-bfloat16".split()
    assert parsing.main([*options, "--out", str(tmp_path)])["step"] == 90
    net = ParsingNet().eval()
    net.load_state_dict(load_tensors(tmp_path / "parser.safetensors"))
    iou = evaluate(net, data["val"])
    assert iou[0] > 0.9 and iou[1] > 0.8 and iou[[4, 5]].mean() > 0.25
    said = float(load_metadata(tmp_path / "parser.safetensors")["miou"])
    assert said == pytest.approx(iou.nanmean().item(), abs=0.01)
    assert '"val_miou"' in (tmp_path / "log.jsonl").read_text()
