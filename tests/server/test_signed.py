"""A server with a public key loads only bundles that the key's owner signed."""

import shutil
import subprocess
import sys

import pytest
import requests
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from loopline.release import signature


@pytest.fixture
def signed(folders, tmp_path):
    """A signed copy of the text model's bundle, and the public key."""
    key = ec.generate_private_key(ec.SECP256R1())
    private, public = tmp_path / "key.pem", tmp_path / "key.pub"
    pem = serialization.Encoding.PEM
    plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    private.write_bytes(key.private_bytes(pem, *plain))
    public.write_bytes(key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    folder = shutil.copytree(folders["text"], tmp_path / "text")
    signature.sign(folder, private)
    return folder, public


def refused(*arguments):
    """What it says when it ends at once."""
    words = [sys.executable, "-m", "loopline.cli", "serve", "--port", "0", *map(str, arguments)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1]


def test_a_signed_bundle_is_served(serve, signed):
    server = serve(signed[0], "--verify-key", signed[1])
    assert requests.get(server.url + "/v2/health/ready", timeout=60).status_code == 200
    assert [line["signed"] for line in server.log if line["message"] == "model loaded"] == [True]


def test_the_key_may_stand_in_the_environment(serve, signed):
    server = serve(signed[0], env={"LOOPLINE_VERIFY_KEY": str(signed[1])})
    assert [line["signed"] for line in server.log if line["message"] == "model loaded"] == [True]


def test_without_a_key_signatures_do_not_matter(serve, signed):
    signature.beside(signed[0]).write_text("nonsense")
    server = serve(signed[0], env={"LOOPLINE_VERIFY_KEY": ""})
    assert [line["signed"] for line in server.log if line["message"] == "model loaded"] == [False]


def test_an_unsigned_bundle_is_not_served(signed):
    signature.beside(signed[0]).unlink()
    assert "text is not signed, and" in refused(signed[0], "--verify-key", signed[1])


def test_one_unsigned_bundle_among_signed_ones_stops_the_server(signed, folders):
    assert "classifier is not signed" in refused(signed[0], folders["classifier"], "--verify-key", signed[1])


def test_a_key_that_is_not_there_stops_the_server(signed, tmp_path):
    assert "none.pub is not a public key" in refused(signed[0], "--verify-key", tmp_path / "none.pub")
