"""Weights: the order of places, downloads that survive trouble, and the safetensors files."""

from __future__ import annotations

import hashlib
import pickle
import re
import struct
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch

from riddle import downloads, ncnn, zoo
from riddle.assets import ASSETS, Asset

CONTENT = np.random.default_rng(0).bytes(3_000_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@contextmanager
def serving(content=CONTENT, drop_after=None, ranges=True, status=200, kind="application/octet-stream", named=True):
    """A local server; yields its address and the list of Range headers it saw.

    drop_after: bytes after which each connection is cut. ranges: whether it honours Range. named: whether it says which
    part it sends."""
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked = self.headers.get("Range")
            seen.append(asked)
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and ranges else 0
            if status != 200:
                self.send_error(status)
                return
            if start >= len(content):
                self.send_error(416)
                return
            body = content[start:]
            self.send_response(206 if start else 200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            if start and named:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.end_headers()
            self.wfile.write(body[:drop_after])
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
    """Adds an asset named net to the registry."""

    def add(url, **fields):
        asset = Asset("net", "nets/net.bin", (url,) if isinstance(url, str) else url, source="example", **fields)
        monkeypatch.setitem(ASSETS, "net", asset)
        return home / "cache" / "weights" / asset.path

    return add


def leftovers(target):
    return sorted(p.name for p in target.parent.iterdir()) if target.parent.exists() else []


def test_a_download_is_checked_named_and_then_found_without_the_server(register):
    with serving() as (url, seen):
        target = register(url, size=len(CONTENT), sha256=DIGEST)
        assert zoo.find("net") == target
    assert target.read_bytes() == CONTENT
    assert leftovers(target) == ["net.bin"]
    assert zoo.find("net") == target and len(seen) == 1


def test_a_dropped_connection_is_resumed_where_it_stopped(register):
    with serving(drop_after=1_100_000) as (url, seen):
        target = register(url, size=len(CONTENT), sha256=DIGEST)
        zoo.find("net")
    assert seen == [None, "bytes=1100000-", "bytes=2200000-"]
    assert target.read_bytes() == CONTENT


def test_a_server_that_never_gets_further_is_given_up(register, monkeypatch):
    monkeypatch.setattr(downloads, "PAUSE", 0.01)
    # its second part could be any: the file starts over
    with serving(drop_after=1_100_000, named=False) as (url, seen):
        target = register(url, size=len(CONTENT), sha256=DIGEST)
        with pytest.raises(zoo.WeightsMissingError, match="another part|connection lost"):
            zoo.find("net")
    assert len(seen) <= 5 and not target.exists()


def test_what_an_earlier_run_left_is_continued(register):
    with serving() as (url, seen):
        target = register(url, sha256=DIGEST)
        target.parent.mkdir(parents=True)
        downloads.part_path(target, url).write_bytes(CONTENT[:1000])
        zoo.find("net")
    assert seen == ["bytes=1000-"] and target.read_bytes() == CONTENT


def test_a_server_that_ignores_ranges_starts_over(register):
    with serving(ranges=False) as (url, _):
        target = register(url, sha256=DIGEST)
        target.parent.mkdir(parents=True)
        downloads.part_path(target, url).write_bytes(b"x" * 1000)
        zoo.find("net")
    assert target.read_bytes() == CONTENT


def test_a_part_longer_than_the_file_starts_over(register):
    with serving() as (url, _):
        target = register(url, sha256=DIGEST)
        target.parent.mkdir(parents=True)
        downloads.part_path(target, url).write_bytes(b"x" * (len(CONTENT) + 5))
        zoo.find("net")
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("fields", "server", "cause"),
    [
        ({"sha256": "0" * 64}, {}, f"sha256 {DIGEST}"),
        ({"size": 17}, {}, f"{len(CONTENT)} bytes, not 17"),
        ({}, {"status": 404}, "404"),
        ({}, {"kind": "text/html"}, "web page"),
        ({"size": len(CONTENT)}, {"drop_after": 10}, "connection lost"),
    ],
    ids=["wrong sha256", "wrong size", "404", "web page", "cut for good"],
)
def test_a_bad_download_leaves_no_file_and_says_what_to_do(register, fields, server, cause):
    with serving(**server) as (url, _):
        target = register(url, **fields)
        with pytest.raises(zoo.WeightsMissingError) as caught:
            zoo.find("net")
        part = downloads.part_path(target, url).name
    kept = [part] if cause == "connection lost" else []  # good bytes, worth resuming
    assert leftovers(target) == kept
    assert cause in str(caught.value)
    assert url in str(caught.value) and "RIDDLE_WEIGHTS/nets/net.bin" in caught.value.remedy


def test_the_second_address_serves_when_the_first_fails(register):
    with serving(status=503) as (bad, _), serving() as (good, _):
        target = register((bad, good), sha256=DIGEST)
        assert zoo.find("net").read_bytes() == CONTENT == target.read_bytes()


def test_without_a_known_sha256_the_first_download_fixes_it(register):
    with serving() as (url, _):
        target = register(url)
        zoo.find("net").unlink()
        assert DIGEST in (target.parent.parent / "recorded.json").read_text()
    with serving(CONTENT[::-1]) as (url, _):
        register(url)
        with pytest.raises(zoo.WeightsMissingError, match="sha256"):
            zoo.find("net")


def test_offline_says_so_and_asks_nobody(register, monkeypatch):
    monkeypatch.setenv("RIDDLE_OFFLINE", "1")
    with serving() as (url, seen):
        register(url)
        with pytest.raises(zoo.WeightsMissingError, match="RIDDLE_OFFLINE"):
            zoo.find("net")
    assert seen == []


def test_an_unreachable_server_is_reported(register):
    register("http://127.0.0.1:9/net.bin")
    with pytest.raises(zoo.WeightsMissingError, match="refused"):
        zoo.find("net")


def test_places_are_searched_in_their_order(register, home, monkeypatch):
    places = {
        "configured": home / "mine.bin",
        "bundled": home / "home" / "data" / "zoo" / "nets" / "net.bin",
        "weights": home / "weights" / "nets" / "net.bin",
        "flat": home / "weights2" / "net.bin",
        "cache": register("http://127.0.0.1:9/none"),
    }
    for path in places.values():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    monkeypatch.setenv("RIDDLE_WEIGHTS", f"{home / 'weights'}:{home / 'weights2'}")
    (home / "config.toml").write_text(f'[assets]\nnet = "{places["configured"]}"\n')
    for name, path in places.items():
        assert zoo.find("net") == path, name
        if name == "configured":
            (home / "config.toml").unlink()
        else:
            path.unlink()
    assert zoo.locate("net") is None
    assert zoo.find(str(places["configured"])) == places["configured"]


def test_errors_name_the_file_and_survive_a_process_boundary(home):
    with pytest.raises(zoo.WeightsMissingError) as caught:
        zoo.find("sphereface20")
    assert "7z" in caught.value.remedy and "sphere20a_20171020.pth" in caught.value.remedy
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value)
    with pytest.raises(KeyError, match="irse50"):
        zoo.find("no-such-network")
    (home / "config.toml").write_text("[assets\n")
    with pytest.raises(ValueError, match=r"config\.toml"):
        zoo.find("irse50")


def test_every_asset_says_its_terms_and_source():
    for asset in ASSETS.values():
        assert asset.licence and asset.source, asset.name
        assert asset.urls or asset.made_from or asset.note, asset.name
        assert asset.sha256 is None or re.fullmatch(r"[0-9a-f]{8}|[0-9a-f]{64}", asset.sha256), asset.name
        assert all(url.startswith("https://") for url in asset.urls), asset.name


# ---- safetensors


def test_tensors_come_back_as_float32_within_half_precision(tmp_path):
    torch.manual_seed(0)
    tensors = {"w": torch.randn(7, 5), "big": torch.tensor([1e6, -3.0]), "steps": torch.tensor([3, 2**40])}
    tensors["view"] = tensors["w"].t()  # shares memory, not contiguous
    zoo.save_tensors(tmp_path / "a" / "net.safetensors", tensors, {"preset": "mobile", "steps": 5})
    back = zoo.load_tensors(tmp_path / "a" / "net.safetensors")
    assert torch.equal(back["w"], tensors["w"].half().float())
    assert torch.equal(back["view"], tensors["w"].half().float().t())
    assert torch.equal(back["big"], tensors["big"])  # float16 would make it infinite
    assert torch.equal(back["steps"], tensors["steps"])
    assert zoo.load_metadata(tmp_path / "a" / "net.safetensors") == {"preset": "mobile", "steps": "5"}
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["net.safetensors"]


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "net.safetensors"
    zoo.save_tensors(path, {"w": torch.zeros(100)})
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ValueError, match=r"net\.safetensors"):
        zoo.load_tensors(path)


def test_bundled_weights_are_found_or_named(home):
    path = home / "home" / "data" / "zoo" / "mobile" / "generator.safetensors"
    zoo.save_tensors(path, {"w": torch.ones(2)})
    assert zoo.bundled("mobile", "generator") == path
    with pytest.raises(zoo.WeightsMissingError, match=r"encoder\.safetensors"):
        zoo.bundled("mobile", "encoder")


def test_matrices_of_eight_bits_come_back_row_by_row(tmp_path):
    torch.manual_seed(0)
    rows = 10 ** torch.linspace(-3, 3, 40)[:, None]
    tensors = {"a.w": rows * torch.randn(40, 600), "a.kernel": torch.randn(8, 4, 3, 3), "a.bias": torch.randn(40)}
    tensors |= {"a.zero": torch.zeros(3, 5), "b.w": torch.randn(40, 600)}
    zoo.save_tensors(tmp_path / "net.safetensors", tensors, coarse=("a.",))
    back = zoo.load_tensors(tmp_path / "net.safetensors")
    assert back.keys() == tensors.keys() and all(v.dtype == torch.float32 for v in back.values())
    for name in ("a.w", "a.kernel"):
        worst = (back[name] - tensors[name]).abs().flatten(1).amax(1)
        assert (worst <= tensors[name].abs().flatten(1).amax(1) / 253).all(), name
    for name in ("a.bias", "a.zero", "b.w"):
        assert torch.allclose(back[name], tensors[name], rtol=1e-3), name
    assert (tmp_path / "net.safetensors").stat().st_size < 40 * 600 * 3 + 4096


def test_an_ncnn_network_is_read_as_its_graph_says(tmp_path):
    values = np.arange(1, 200, dtype="<f4")
    blocks = [values[:54], values[54:62], values[62:64]]  # convolution 2x3x3x3, batch norm of 2, PReLU of 2
    (tmp_path / "n.bin").write_bytes(struct.pack("<I", 0) + b"".join(b.tobytes() for b in blocks))
    (tmp_path / "n.param").write_text(
        "7767517\n4 4\nInput data 0 1 data\n"
        "Convolution c_conv2d 1 1 data c 0=2 1=3 3=1 5=0 6=54\n"
        "BatchNorm c_batchnorm 1 1 c b 0=2\nPReLU c_relu 1 1 b r 0=2\n"
    )
    layers = ncnn.read(tmp_path / "n.bin", tmp_path / "n.param")
    assert np.array_equal(layers["c_conv2d"][0], values[:54])
    assert [list(a) for a in layers["c_batchnorm"]] == [[55, 56], [57, 58], [59, 60], [61, 62]]
    assert list(layers["c_relu"][0]) == [63, 64]
    (tmp_path / "n.bin").write_bytes((tmp_path / "n.bin").read_bytes()[:-4])
    with pytest.raises(ValueError, match=r"n\.bin"):
        ncnn.read(tmp_path / "n.bin", tmp_path / "n.param")


def test_the_published_recogniser_is_converted_on_first_use(home, monkeypatch):
    """Written in ncnn's layout here, from random weights, it comes back as our module's own state dict."""
    from riddle.models.mobilefacenet import MobileFaceNet

    torch.manual_seed(0)
    state = {k: torch.rand(v.shape) for k, v in MobileFaceNet().state_dict().items() if "num_batches" not in k}
    blob, lines = b"", ["7767517", "0 0"]

    def add(line, *arrays, flag=False):
        nonlocal blob
        blob += (b"\0" * 4 if flag else b"") + b"".join(a.numpy().astype("<f4").tobytes() for a in arrays)
        lines.append(line)

    def norm(block):
        return [state[f"{block}.{k}"] for k in ("weight", "running_mean", "running_var", "bias")]

    for key in state:
        block = key.split(".")[0]
        if key.endswith(".conv.weight"):
            w = state[key]
            add(f"Convolution {block}_conv2d 1 1 a b 0={len(w)} 5=0 6={w.numel()}", w, flag=True)
            add(f"BatchNorm {block}_batchnorm 1 1 a b 0={len(w)}", *norm(f"{block}.bn"))
            if f"{block}.prelu.weight" in state:
                add(f"PReLU {block}_relu 1 1 a b 0={len(w)}", state[f"{block}.prelu.weight"])
    fc = [state["fc.weight"]] + ([state["fc.bias"]] if "fc.bias" in state else [])
    add(f"InnerProduct pre_fc1 1 1 a b 0=128 1={len(fc) - 1} 2=65536", *fc, flag=True)
    add("BatchNorm fc1 1 1 a b 0=128", *norm("fc_bn"))

    monkeypatch.setenv("RIDDLE_WEIGHTS", str(home / "weights"))
    upstream = home / "weights" / "recognizers" / "upstream"
    upstream.mkdir(parents=True)
    (upstream / "MobileFaceNet.bin").write_bytes(blob)
    (upstream / "MobileFaceNet.param").write_text("\n".join(lines))
    made = zoo.find("arcface-mobilefacenet")
    assert made.is_relative_to(home / "cache")
    back = zoo.load_tensors(made)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[k], state[k]) for k in state)


def test_lpips_is_frozen_zero_on_equal_images_and_leaves_the_hub_folder():
    if zoo.locate("squeezenet1_1") is None:
        pytest.skip("needs SqueezeNet's weights: set RIDDLE_WEIGHTS")
    before = torch.hub.get_dir()
    lpips = zoo.load_lpips()
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert torch.hub.get_dir() == before
    assert not lpips.training and not any(p.requires_grad for p in lpips.parameters())
    assert lpips(x, x).abs().max() < 1e-6
    assert (lpips(x, x.flip(0)) > 0.05).all()
