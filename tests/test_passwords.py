"""Passwords: derivation against a second implementation, determinism, distribution, interpolation."""

import hashlib
import hmac
import math
import unicodedata

import numpy as np
import pytest
import torch
from scipy import stats

from riddle import passwords


def test_argon2id_agrees_with_another_implementation():
    argon2 = pytest.importorskip("cryptography.hazmat.primitives.kdf.argon2")
    salt = hashlib.sha256(b"riddle password v1 mobile").digest()[:16]
    try:
        kdf = argon2.Argon2id(salt=salt, length=32, iterations=3, lanes=4, memory_cost=65536)
    except Exception as e:  # an OpenSSL without Argon2
        pytest.skip(f"cryptography has no Argon2id here: {e}")
    assert passwords.derive_key("correct horse", "mobile") == kdf.derive(b"correct horse")


@pytest.mark.parametrize(
    ("passphrase", "preset", "salt", "key"),
    [
        ("correct horse", "mobile", None, "6bf2af597e80a147cb14b21c57491432e9045fc2efe208211adf3446896c57ca"),
        ("correct horse", "mobile", bytes(range(16)).hex(),
         "577f1ff37e9a3e52c97d39f8e83891c1b73b0e87ffe0429cee8ede2fb005fe44"),
        ("pässwörd ①", "ffhq1024", None, "999b87bd43327f8a1e4a9322d5a0b4c9f4ab805756aaf2547276ef5e0225b008"),
        ("пароль 密码 🔑", "ffhq256", "ff" * 16, "91f3ebfd3a3b5a3af9f39e8b1dfba33bfb9764118585191188bcf1c075df9d51"),
    ],
)  # fmt: skip
def test_a_passphrase_means_the_same_key_in_every_version(passphrase, preset, salt, key):
    """Any Argon2id program gives these."""
    assert passwords.derive_key(passphrase, preset, salt and bytes.fromhex(salt)).hex() == key


def test_salts():
    assert passwords.public_salt("mobile").hex() == hashlib.sha256(b"riddle password v1 mobile").hexdigest()[:32]
    assert len({passwords.random_salt() for _ in range(50)}) == 50 and len(passwords.random_salt()) == 16
    public = passwords.derive_key("x", "mobile")
    assert public == passwords.derive_key("x", "mobile", passwords.public_salt("mobile"))
    assert len({public, passwords.derive_key("x", "mobile", bytes(16)), passwords.derive_key("x", "ffhq256")}) == 3
    with pytest.raises(ValueError, match="16 bytes, got 8"):
        passwords.derive_key("x", "mobile", bytes(8))


def test_unicode_forms_of_one_passphrase_agree():
    composed = "Ångström 1"
    decomposed = unicodedata.normalize("NFD", composed)
    assert composed != decomposed
    assert len({passwords.derive_key(x, "mobile") for x in (composed, decomposed, "Ångström ①")}) == 1


@pytest.mark.parametrize(
    ("bad", "error"),
    [("", ValueError), (" \u3000", ValueError), ("half \ud83d", ValueError), (b"bytes", TypeError), (12, TypeError)],
)
def test_what_is_no_passphrase(bad, error):
    with pytest.raises(error, match="passphrase"):
        passwords.derive_key(bad, "mobile")


def test_normals_follow_their_definition():
    key = bytes(range(32))
    stream, values = hashlib.shake_256(key).digest(8 * 5), passwords.normal_from_key(key, 512)
    for i in range(5):
        k = int.from_bytes(stream[8 * i : 8 * i + 8], "little") >> 12
        assert values[i] == pytest.approx(stats.norm.ppf((k + 0.5) / 2**52), abs=1e-6)
    assert np.array_equal(values[:64], passwords.normal_from_key(key, 64))  # a longer stream goes on
    known = passwords.normal_from_key(passwords.derive_key("correct horse", "mobile"), 3)
    np.testing.assert_allclose(known, [-1.663937, 1.278232, -2.14127], atol=1e-6)
    z = np.concatenate([passwords.normal_from_key(bytes([i]) * 32, 512) for i in range(40)])
    assert np.isfinite(z).all() and stats.kstest(z, "norm").pvalue > 0.01


def test_a_password_is_the_w_of_its_normals_in_every_slot(codes):
    a, b = (passwords.password(p, codes, 8, "smoke", bytes(16)) for p in ("Ångström 1", "Ångström 2"))
    key = passwords.derive_key("Ångström 1", "smoke", bytes(16))
    z = torch.from_numpy(passwords.normal_from_key(key, 64))
    assert torch.equal(a, codes.to_w(z[None])[:, None].expand(1, 8, 64))
    assert torch.equal(a, passwords.from_key(key, codes, 8)) and not torch.allclose(a, b, atol=0.05)


def test_subkeys_are_hkdf_and_differ_by_purpose():
    """RFC 5869, worked out here by HMAC."""
    secret = bytes(range(32))
    for purpose in ("record", "face 0"):
        extracted = hmac.digest(bytes(32), secret, "sha256")
        expanded = hmac.digest(extracted, f"riddle 4 {purpose}".encode() + b"\1", "sha256")
        assert passwords.subkey(secret, purpose) == expanded
    made = {passwords.subkey(s, p) for s in (secret, bytes(32)) for p in ("record", "face 0", "face 1", "face 11")}
    assert len(made) == 8 and not made & {secret, bytes(32)}


def test_each_face_has_its_own_password(codes):
    secrets = [passwords.derive_key("x", "smoke", bytes([i]) * 16) for i in range(2)]
    faces = passwords.face_passwords(secrets[0], [0, 0, 2], codes, 8)
    assert torch.equal(faces, passwords.face_passwords(secrets[0], [0, 0, 2], codes, 8)) and faces.shape == (3, 8, 64)
    assert torch.equal(faces[1:2], passwords.from_key(passwords.subkey(secrets[0], "face 1"), codes, 8))
    assert torch.equal(faces[2:], passwords.from_key(passwords.subkey(secrets[0], "face 2 turn 2"), codes, 8))
    assert torch.equal(faces[:2], passwords.face_passwords(secrets[0], [0, 0], codes, 8))
    others = [passwords.face_passwords(secrets[k], [1 - k] * 3, codes, 8) for k in (0, 1)]
    every = torch.cat([faces, *others]).flatten(1)
    assert torch.pdist(every).min() > 0.5 * torch.pdist(passwords.random_keys(9, 0, codes, 8).flatten(1)).min()


def test_random_keys(codes):
    keys = passwords.random_keys(6, 11, codes, 8)
    assert keys.shape == (6, 8, 64) and torch.equal(keys[:, 0], keys[:, 7])  # one w for every slot
    assert torch.allclose(keys[:2], passwords.random_keys(2, 11, codes, 8), atol=1e-6)
    assert not torch.allclose(keys, passwords.random_keys(6, 12, codes, 8), atol=0.05)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(keys, passwords.random_keys(6, 11, codes, 8))
    with pytest.raises(ValueError, match="n=0"):
        passwords.random_keys(0, 0, codes, 8)


@pytest.mark.parametrize("how", ["linear", "slerp"])
def test_interpolation_ends_at_its_ends(codes, how):
    a, b = passwords.random_keys(2, 5, codes, 8).split(1)
    way = passwords.interpolate(a, b, torch.linspace(0, 1, 5), how)
    assert way.shape == (5, 1, 8, 64)
    assert torch.allclose(way[0], a, atol=1e-5) and torch.allclose(way[-1], b, atol=1e-5)
    assert torch.allclose(way[1], passwords.interpolate(a, b, 0.25, how), atol=1e-6)
    with pytest.raises(ValueError, match="shapes"):
        passwords.interpolate(a, a[0], 0.5, how)
    with pytest.raises(ValueError, match="cubic"):
        passwords.interpolate(a, a, 0.5, "cubic")


def test_slerp_turns_evenly():
    a, b = torch.tensor([[[2.0, 0.0]]]), torch.tensor([[[0.0, 4.0]]])
    got = passwords.interpolate(a, b, 1 / 3, "slerp")[0, 0]
    length = 2 + 2 / 3
    assert got.tolist() == pytest.approx([length * math.cos(math.pi / 6), length * math.sin(math.pi / 6)], abs=1e-5)
    assert torch.allclose(passwords.interpolate(a, 2 * a, 0.5, "slerp"), 1.5 * a, atol=1e-6)
