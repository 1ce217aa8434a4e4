"""Signatures by the package model-signing, and their verification by a server."""

import base64
import json
import shutil

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from loopline.cli import main
from loopline.fleet import members
from loopline.release import bundle, signature
from loopline.release.bundle import BundleError
from loopline.release.signature import SignatureError

PEM, SPKI = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo


def keys(folder, kind=None, password=None):
    """Write a private key, by default a new one, and its public key; return the files."""
    key = kind or ec.generate_private_key(ec.SECP256R1())
    locked = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    private, public = folder / "key.pem", folder / "key.pub"
    private.write_bytes(key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, locked))
    public.write_bytes(key.public_key().public_bytes(PEM, SPKI))
    return private, public


@pytest.fixture
def signed(make, tmp_path):
    """A signed bundle, and the public key."""
    private, public = keys(tmp_path)
    good = make("good", 130)
    signature.sign(good.folder, private)
    return good, public


@pytest.mark.parametrize("curve", [ec.SECP256R1, ec.SECP384R1, ec.SECP521R1])
def test_a_signature_by_model_signing_is_verified_and_the_bundle_stays_the_same(make, tmp_path, curve):
    private, public = keys(tmp_path, ec.generate_private_key(curve()))
    good = make("good", 130)
    assert signature.sign(good.folder, private) == tmp_path / "good.sig"
    signature.verify(bundle.read(good.folder), public)
    assert bundle.verify(good.folder) == good.version
    from model_signing import verifying

    verifying.Config().use_elliptic_key_verifier(public_key=public).verify(good.folder, tmp_path / "good.sig")


def test_a_key_may_have_a_password(make, tmp_path, monkeypatch):
    private, public = keys(tmp_path, password=b"secret")
    good = make("good", 130)
    with pytest.raises(SignatureError, match="cannot be signed with"):
        signature.sign(good.folder, private)
    assert not signature.beside(good.folder).exists()
    monkeypatch.setenv("LOOPLINE_SIGN_PASSWORD", "secret")
    signature.sign(good.folder, private)
    signature.verify(good, public)


def test_an_unsigned_bundle_is_refused(make, tmp_path):
    _, public = keys(tmp_path)
    with pytest.raises(SignatureError, match=r"good is not signed, and .*key\.pub demands it"):
        signature.verify(make("good", 130), public)


def test_a_signature_with_another_key_is_refused(signed, tmp_path):
    (tmp_path / "other").mkdir()
    _, other = keys(tmp_path / "other")
    with pytest.raises(SignatureError, match="was not made with the key of"):
        signature.verify(signed[0], other)


def test_the_signature_of_another_bundle_is_refused(signed, make):
    other = make("other", 140)
    shutil.copy(signature.beside(signed[0].folder), signature.beside(other.folder))
    with pytest.raises(SignatureError, match=f"is of bundle {signed[0].version:.12}, but this is {other.version:.12}"):
        signature.verify(other, signed[1])


def test_a_changed_bundle_whose_sums_were_made_anew_is_refused(signed):
    good, public = signed
    card, sums = good.folder / "MODEL_CARD.md", good.folder / bundle.SUMS
    before = bundle._sha256(card)
    card.write_text("better than ever")
    sums.write_text(sums.read_text().replace(before, bundle._sha256(card)))
    with pytest.raises(SignatureError, match="check who changed it, or sign it again"):
        signature.verify(bundle.read(good.folder), public)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda envelope: envelope | {"payload": base64.b64encode(b'{"predicate": {}}').decode()},
            "not made with the key",
        ),
        (lambda envelope: envelope | {"payloadType": "text/plain"}, "signs 'text/plain'"),
        (lambda envelope: envelope | {"signatures": []}, "is not a signature"),
        (lambda envelope: envelope | {"signatures": [{"sig": "AAAA"}]}, "not made with the key"),
        (lambda envelope: envelope | {"payload": "%"}, "is not a signature"),
        (lambda _: None, "is not a signature"),
    ],
)
def test_a_changed_signature_is_refused(signed, change, message):
    path = signature.beside(signed[0].folder)
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"dsseEnvelope": change(content["dsseEnvelope"])}))
    with pytest.raises(SignatureError, match=message):
        signature.verify(*signed)


@pytest.mark.parametrize(
    "statement",
    [[], {}, {"predicateType": "x", "predicate": {"serialization": {"method": "files"}, "resources": []}}],
)
def test_a_signature_of_something_else_with_the_same_key_is_refused(signed, tmp_path, statement):
    from cryptography.hazmat.primitives import hashes

    payload = json.dumps(statement).encode()
    key = serialization.load_pem_private_key((tmp_path / "key.pem").read_bytes(), None)
    message = b"DSSEv1 28 application/vnd.in-toto+json %d %s" % (len(payload), payload)
    path = signature.beside(signed[0].folder)
    content = json.loads(path.read_text())
    content["dsseEnvelope"]["payload"] = base64.b64encode(payload).decode()
    content["dsseEnvelope"]["signatures"] = [
        {"sig": base64.b64encode(key.sign(message, ec.ECDSA(hashes.SHA256()))).decode(), "keyid": ""}
    ]
    path.write_text(json.dumps(content))
    with pytest.raises(SignatureError, match="signs something else"):
        signature.verify(*signed)


@pytest.mark.parametrize("key", ["missing", "text", "private", "rsa", "secp256k1"])
def test_an_unusable_key_is_refused(signed, tmp_path, key):
    folder = tmp_path / "other"
    folder.mkdir()
    odd_keys = {"rsa": rsa.generate_private_key(65537, 2048), "secp256k1": ec.generate_private_key(ec.SECP256K1())}
    private, public = keys(folder, odd_keys.get(key))
    path = {"missing": folder / "none", "text": folder / "text", "private": private}.get(key, public)
    (folder / "text").write_text("key")
    with pytest.raises(SignatureError, match="private key" if key == "private" else "is not a public key|is a key on"):
        signature.verify(signed[0], path)


def test_a_damaged_bundle_is_not_signed(make, tmp_path):
    private, _ = keys(tmp_path)
    good = make("good", 130)
    (good.folder / "model.onnx").write_bytes(b"x")
    with pytest.raises(BundleError, match=r"model\.onnx was changed"):
        signature.sign(good.folder, private)


def test_a_rollout_copies_the_signature_with_the_bundle(signed, tmp_path):
    _, kept = members.keep(signed[0].folder, tmp_path / "store")
    signature.verify(kept, signed[1])


def test_a_rollout_adds_a_later_signature_to_its_copy(make, tmp_path):
    private, public = keys(tmp_path)
    good = make("good", 130)
    members.keep(good.folder, tmp_path / "store")
    signature.sign(good.folder, private)
    signature.verify(members.keep(good.folder, tmp_path / "store")[1], public)


def test_the_registry_keeps_the_signature(project, make, tmp_path):
    from loopline.release import registry

    private, public = keys(tmp_path)
    good = make("good", 130)
    registry.register(good.folder)
    assert not signature.beside(registry.fetch("classifier", good.version, tmp_path / "a").bundle.folder).exists()
    signature.sign(good.folder, private)
    registry.register(good.folder)
    signature.verify(registry.fetch("classifier", good.version, tmp_path / "b").bundle, public)


def test_the_verbs_sign_and_verify(make, tmp_path, monkeypatch, capsys):
    private, public = keys(tmp_path)
    good = make("good", 130)
    monkeypatch.delenv("LOOPLINE_SIGN_KEY", raising=False)
    assert main(["sign", str(good.folder)]) == 1
    monkeypatch.setenv("LOOPLINE_SIGN_KEY", str(private))
    assert main(["sign", str(good.folder)]) == 0
    assert main(["verify-signature", str(good.folder), "--key", str(public)]) == 0
    assert f"bundle {good.version:.12} is signed by the owner of" in capsys.readouterr().out
    signature.beside(good.folder).unlink()
    assert main(["verify-signature", str(good.folder), "--key", str(public)]) == 1
    assert main(["verify-signature", str(good.folder), "--identity", "me@example.org"]) == 1
    assert "--identity needs --issuer" in capsys.readouterr().err
