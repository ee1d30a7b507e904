"""Weights: the order of places, downloads, and the safetensors files."""

import hashlib
import pickle
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
import torchvision

from riddle import weights
from riddle.assets import ASSETS, Asset
from riddle.models.mobilefacenet import MobileFaceNet
from riddle.weights import WeightsMissingError, find, load_metadata, load_tensors, locate, save_tensors

CONTENT = np.random.default_rng(0).bytes(3_000_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@contextmanager
def serving(content=CONTENT, status=200, drop_after=None, drops=99, wait=0.0):
    """A local server; yields its address and the list of the paths that were asked for.

    drop_after: bytes after which a connection is cut, the first `drops` times. wait: s before an answer.
    """
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append(self.path)
            time.sleep(wait)
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: drop_after if len(seen) <= drops else None])
            self.close_connection = True

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/net.bin", seen
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def register(home, monkeypatch):
    """Adds an asset named net to the list; returns where its download will lie. No retry waits."""
    monkeypatch.setattr("pooch.core.time.sleep", lambda seconds: None)

    def add(*urls, **fields):
        asset = Asset("net", "nets/net.bin", "MIT", "example", urls, **fields)
        monkeypatch.setitem(ASSETS, "net", asset)
        return home / "cache" / "weights" / asset.path

    return add


def visible(folder):
    return sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))


def test_a_dropped_download_is_tried_again_checked_and_then_found_without_the_server(register, monkeypatch):
    with serving(drop_after=1_100_000, drops=1) as (url, seen):
        target = register(url, sha256=DIGEST)
        monkeypatch.setenv("RIDDLE_OFFLINE", "1")
        with pytest.raises(WeightsMissingError, match="RIDDLE_OFFLINE"):
            find("net")
        assert seen == []
        monkeypatch.delenv("RIDDLE_OFFLINE")
        assert find("net") == target and len(seen) == 2
    assert find("net") == target and target.read_bytes() == CONTENT and visible(target.parent) == ["net.bin"]


def test_two_that_want_one_file_download_it_once(register):
    with serving(wait=0.3) as (url, seen):
        target = register(url, sha256=DIGEST)
        with ThreadPoolExecutor(2) as pool:
            assert list(pool.map(find, ["net", "net"])) == [target, target]
    assert len(seen) == 1 and target.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("server", "sha256", "cause"),
    [
        ({}, "0" * 64, DIGEST),
        ({"status": 404}, None, "404"),
        ({"content": b" <!DOCTYPE html><p>Quota exceeded"}, None, "web page"),
        ({"drop_after": 10}, None, "net.bin: .*(10 bytes|IncompleteRead|broken)"),
    ],
    ids=["wrong sha256", "404", "web page", "cut for good"],
)
def test_a_bad_download_leaves_no_file_and_says_what_to_do(register, server, sha256, cause):
    with serving(**server) as (url, _):
        target = register(url, sha256=sha256)
        with pytest.raises(WeightsMissingError, match=cause) as caught:
            find("net")
    assert visible(target.parent) == []
    assert url in str(caught.value) and "RIDDLE_WEIGHTS/nets/net.bin" in caught.value.remedy


def test_the_second_address_serves_when_the_first_fails_and_an_error_names_both(register):
    with serving(status=503) as (bad, _), serving() as (good, _):
        target = register(bad, good, sha256=DIGEST)
        assert find("net").read_bytes() == CONTENT == target.read_bytes()
        target.unlink()
        register(bad, good, sha256="0" * 64)
        with pytest.raises(WeightsMissingError) as caught:
            find("net")
    assert bad in str(caught.value) and "503" in str(caught.value) and good in str(caught.value)


def test_places_are_searched_in_their_order(register, home, monkeypatch):
    places = {
        "bundled": home / "home" / "data" / "zoo" / "nets" / "net.bin",
        "weights": home / "weights" / "nets" / "net.bin",
        "flat": home / "weights2" / "net.bin",
        "cache": register("http://127.0.0.1:9/none"),
    }
    for path in places.values():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    monkeypatch.setenv("RIDDLE_WEIGHTS", f"{home / 'weights'}:{home / 'weights2'}")
    for name, path in places.items():
        assert find("net") == path, name
        path.unlink()
    assert locate("net") is None


def test_errors_name_the_file_and_survive_a_process_boundary(home):
    with pytest.raises(WeightsMissingError) as caught:
        find("sphereface20")
    assert "7z" in caught.value.remedy and "sphere20a_20171020.pth" in caught.value.remedy
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value)
    with pytest.raises(KeyError, match="irse50"):
        find("no-such-network")
    path = home / "home" / "data" / "zoo" / "mobile" / "generator.safetensors"
    save_tensors(path, {"w": torch.zeros(100)})
    assert weights.bundled("mobile", "generator") == path
    with pytest.raises(WeightsMissingError, match=r"encoder\.safetensors"):
        weights.bundled("mobile", "encoder")
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ValueError, match=r"generator\.safetensors"):
        load_tensors(path)


def test_every_asset_says_its_terms_and_source():
    for asset in ASSETS.values():
        assert asset.licence and asset.source, asset.name
        assert asset.urls or asset.made_from or asset.note, asset.name
        assert asset.sha256 is None or re.fullmatch("[0-9a-f]{64}", asset.sha256), asset.name
        assert all(url.startswith("https://") for url in asset.urls), asset.name


# ---- safetensors


def test_tensors_come_back_as_float32_within_half_precision(tmp_path):
    torch.manual_seed(0)
    tensors = {"w": torch.randn(7, 5), "big": torch.tensor([1e6, -3.0]), "steps": torch.tensor([3, 2**40])}
    tensors["view"] = tensors["w"].t()  # shares memory, not contiguous
    save_tensors(tmp_path / "a" / "net.safetensors", tensors, {"preset": "mobile", "steps": 5})
    back = load_tensors(tmp_path / "a" / "net.safetensors")
    assert torch.equal(back["w"], tensors["w"].half().float())
    assert torch.equal(back["view"], tensors["w"].half().float().t())
    assert torch.equal(back["big"], tensors["big"])  # float16 would make it infinite
    assert torch.equal(back["steps"], tensors["steps"])
    assert load_metadata(tmp_path / "a" / "net.safetensors") == {"preset": "mobile", "steps": "5"}
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["net.safetensors"]


def test_matrices_of_eight_bits_come_back_row_by_row(tmp_path):
    torch.manual_seed(0)
    rows = 10 ** torch.linspace(-3, 3, 40)[:, None]
    tensors = {"a.w": rows * torch.randn(40, 600), "a.kernel": torch.randn(8, 4, 3, 3), "a.bias": torch.randn(40)}
    tensors |= {"a.zero": torch.zeros(3, 5), "b.w": torch.randn(40, 600)}
    save_tensors(tmp_path / "net.safetensors", tensors, coarse=("a.",))
    back = load_tensors(tmp_path / "net.safetensors")
    assert back.keys() == tensors.keys() and all(v.dtype == torch.float32 for v in back.values())
    for name in ("a.w", "a.kernel"):
        worst = (back[name] - tensors[name]).abs().flatten(1).amax(1)
        assert (worst <= tensors[name].abs().flatten(1).amax(1) / 253).all(), name
    for name in ("a.bias", "a.zero", "b.w"):
        assert torch.allclose(back[name], tensors[name], rtol=1e-3), name
    assert (tmp_path / "net.safetensors").stat().st_size < 40 * 600 * 3 + 4096


def test_the_published_recogniser_is_converted_on_first_use(home, monkeypatch):
    """Written in ncnn's layout here, from random weights, it comes back as our module's own state dict."""
    torch.manual_seed(0)
    state, blob = {}, b""

    def add(*names, shape, before=b""):
        nonlocal blob
        state.update({name: torch.rand(shape) for name in names})
        blob += before + b"".join(state[name].numpy().astype("<f4").tobytes() for name in names)

    norm, net = ("weight", "running_mean", "running_var", "bias"), MobileFaceNet().state_dict()
    for block in [k.removesuffix(".conv.weight") for k in net if k.endswith(".conv.weight")]:
        count = len(net[f"{block}.conv.weight"])
        add(f"{block}.conv.weight", shape=net[f"{block}.conv.weight"].shape, before=bytes(4))
        add(*[f"{block}.bn.{part}" for part in norm], shape=count)
        if f"{block}.prelu.weight" in net:
            add(f"{block}.prelu.weight", shape=count)
    add("fc.weight", shape=(128, 512), before=bytes(4))
    add("fc.bias", *[f"fc_bn.{part}" for part in norm], shape=128)

    monkeypatch.setenv("RIDDLE_WEIGHTS", str(home / "weights"))
    source = "mobilefacenet-ncnn-weights"
    monkeypatch.setitem(ASSETS, source, replace(ASSETS[source], size=None, sha256=None))
    upstream = home / "weights" / "recognizers" / "upstream" / "MobileFaceNet.bin"
    upstream.parent.mkdir(parents=True)
    upstream.write_bytes(blob[:-4])
    with pytest.raises(ValueError, match=r"MobileFaceNet\.bin holds \d+ numbers"):
        find("arcface-mobilefacenet")
    upstream.write_bytes(blob)
    made = find("arcface-mobilefacenet")
    assert made.is_relative_to(home / "cache")
    back = load_tensors(made)
    assert back.keys() == state.keys() and all(torch.equal(back[k], state[k]) for k in state)


def test_lpips_is_frozen_and_has_the_published_backbone():
    if locate("squeezenet1_1") is None:
        pytest.skip("needs SqueezeNet's weights: set RIDDLE_WEIGHTS")
    lpips, published = weights.load_lpips(), torchvision.models.squeezenet1_1().eval()
    published.load_state_dict(torch.load(find("squeezenet1_1"), weights_only=True))
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        assert torch.equal(lpips.net(x)[-1], published.features(x))
    assert not lpips.training and not any(p.requires_grad for p in lpips.parameters())
    assert lpips(x, x).abs().max() < 1e-6 and (lpips(x, x.flip(0)) > 0.05).all()
