"""Signatures that prove who released a bundle: `models/text/bundle.sig` lies beside the folder `models/text/bundle`.

The format is OpenSSF Model Signing: a Sigstore bundle whose DSSE envelope has an in-toto statement with the sha256 of every file.
The signature is not a part of the bundle, so it does not change the bundle's hash. `sign` needs the package model-signing;
`verify`, which servers call, needs only pycryptodome, which is small.
https://github.com/ossf/model-signing-spec and https://github.com/secure-systems-lab/dsse/blob/v1.0.2/protocol.md
"""

from __future__ import annotations

import base64
import hashlib
import json
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loopline.errors import LooplineError
from loopline.lib import credentials, files
from loopline.release import bundle
from loopline.release.bundle import SUMS, Bundle

if TYPE_CHECKING:
    from Crypto.PublicKey.ECC import EccKey

PASSWORD = "LOOPLINE_SIGN_PASSWORD"  # noqa: S105 - the variable's name
VERIFY_KEY = "LOOPLINE_VERIFY_KEY"
PAYLOAD, PREDICATE = "application/vnd.in-toto+json", "https://model_signing/signature/v1.0"
CURVES = {"NIST P-256": "SHA256", "NIST P-384": "SHA384", "NIST P-521": "SHA512"}  # curve -> its hash function
MOST_BYTES = 1 << 20  # limit for a signature; a usual one has about 4 kB


class SignatureError(LooplineError):
    """A bundle is unsigned, signed with another key, or was changed after it was signed."""


def beside(folder: Path) -> Path:
    """Return the path of the signature of the bundle at `folder`."""
    folder = folder if folder.name.strip(".") else folder.resolve()  # "." and ".." have no name to add to
    return folder.with_name(f"{folder.name}.sig")


def carry(source: Path, target: Path) -> None:
    """Copy the signature of the bundle at `source`, if there is one, to its copy at `target`, completely or not at all."""
    if (signed := beside(source)).exists():
        files.write(beside(target), signed.read_bytes())


def sign(folder: Path, key: Path | None) -> Path:
    """Sign the bundle at `folder`; return the path of the signature.

    key: private key on P-256, P-384 or P-521 in PEM, with its password in LOOPLINE_SIGN_PASSWORD; None signs keyless, as the
    identity of the CI job or of the browser's user. Raises BundleError on a damaged bundle, SignatureError on an unusable key.
    """
    try:
        from model_signing import hashing, signing
    except ImportError as error:
        raise SignatureError("signing needs model-signing: pip install 'loopline[sign]'") from error
    bundle.read(folder)
    partial = beside(folder).with_name(f"{beside(folder).name}.partial")
    all_files = hashing.Config().set_ignored_paths(paths=(), ignore_git_paths=False)
    config = signing.Config().set_hashing_config(all_files)
    try:
        if key is None:
            config.use_sigstore_signer(use_ambient_credentials=True)
        else:
            password: Any = (credentials.secret(PASSWORD) or "").encode() or None
            config.use_elliptic_key_signer(private_key=key, password=password)
        config.sign(folder, partial)
    except Exception as error:  # its libraries' errors have no common base
        raise SignatureError(
            f"{folder} cannot be signed with {key or 'the identity of this machine'}: {error}"
        ) from error
    partial.replace(beside(folder))
    return beside(folder)


def verify(opened: Bundle, key: Path) -> None:
    """Check that a bundle, whose files match its sums, is signed by the owner of `key`. Raises SignatureError if it is not.

    key: public key in PEM.
    """
    path = beside(opened.folder)
    statement = _statement(path, _public(key), key)
    try:
        serialized = statement["predicate"]["serialization"]
        files = {row["name"]: (row["algorithm"], row["digest"]) for row in statement["predicate"]["resources"]}
        is_supported = statement["predicateType"] == PREDICATE and serialized["method"] == "files"
    except (KeyError, TypeError) as error:
        raise SignatureError(f"{path} signs something else: {error!r} is missing") from error
    if not is_supported or any(algorithm != "sha256" for algorithm, _ in files.values()):
        raise SignatureError(f"{path} signs something else: it must sign the sha256 of files as {PREDICATE}")
    lines = sorted(f"{digest}  {name}\n" for name, (_, digest) in files.items() if name != SUMS)
    if (signed := hashlib.sha256("".join(lines).encode()).hexdigest()) != opened.version:
        raise SignatureError(
            f"{path} is of bundle {signed:.12}, but this is {opened.version:.12}: check who changed it, or sign it again"
        )


def verify_keyless(folder: Path, identity: str, issuer: str) -> None:
    """Check with Sigstore that this identity, confirmed by this OpenID Connect issuer, signed the bundle. Raises SignatureError."""
    try:
        from model_signing import verifying

        verifying.Config().use_sigstore_verifier(identity=identity, oidc_issuer=issuer).verify(folder, beside(folder))
    except Exception as error:  # its libraries' errors have no common base
        raise SignatureError(f"{beside(folder)} could not be verified as a signature by {identity}: {error}") from error


def _public(key: Path) -> EccKey:
    from Crypto.PublicKey import ECC

    try:
        public = ECC.import_key(key.read_bytes())
    except (OSError, ValueError) as error:
        raise SignatureError(f"{key} is not a public key in PEM: {error}") from error
    if public.has_private():
        raise SignatureError(f"{key} is a private key: keep it secret and give servers the public key")
    if public.curve not in CURVES:
        raise SignatureError(f"{key} is a key on {public.curve}: use one on {', '.join(CURVES)}")
    return public


def _statement(path: Path, public: EccKey, key: Path) -> dict[str, Any]:
    """Return the statement in the envelope at `path` after checking that this key signed it."""
    from Crypto.Signature import DSS

    try:
        with path.open("rb") as file:
            content = json.loads(file.read(MOST_BYTES))
        envelope = content["dsseEnvelope"]
        payload = base64.b64decode(envelope["payload"], validate=True)
        (signed,) = envelope["signatures"]
        signature = base64.b64decode(signed["sig"], validate=True)
        kind = envelope["payloadType"]
    except FileNotFoundError as error:
        raise SignatureError(
            f"{path} is missing: {path.with_suffix('')} is not signed, and {key} demands it"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SignatureError(f"{path} is not a signature with a key: {error!r}") from error
    if kind != PAYLOAD:
        raise SignatureError(f"{path} signs {kind!r:.80} in place of {PAYLOAD}")
    message = b"DSSEv1 %d %s %d %s" % (len(PAYLOAD), PAYLOAD.encode(), len(payload), payload)
    digest = import_module(f"Crypto.Hash.{CURVES[public.curve]}").new(message)
    try:
        DSS.new(public, "fips-186-3", encoding="der").verify(digest, signature)
        statement: dict[str, Any] = json.loads(payload)
    except ValueError as error:
        raise SignatureError(f"{path} was not made with the key of {key}, or was changed since") from error
    return statement
