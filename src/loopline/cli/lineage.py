"""The verbs that prove where something comes from."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict
from pathlib import Path

from loopline.cli.verbs import Verbs, verb


def _whoami(options: argparse.Namespace) -> int:
    from loopline.lib import credentials
    from loopline.release import lineage

    url = options.url.rstrip("/")
    question = lineage.Question(
        url=url,
        metrics=options.metrics.rstrip("/"),
        image=options.image,
        bundle=options.bundle,
        token=credentials.secret(credentials.SERVER),
        made_from=_made_from,
    )
    links = []
    for model in options.model or lineage.models(question):
        for place, link in enumerate(lineage.walk(question, model)):
            links.append(link)
            if not options.json:
                print(f"{'' if place else f'{model}:{chr(10)}'}  {link}", flush=True)
    stands = lineage.stands(links, options.allow_missing)
    if options.json:
        print(
            json.dumps(
                {"url": url, "whole": stands, "links": [asdict(link) for link in links]}, indent=2, ensure_ascii=False
            )
        )
    return 0 if stands else 1


def _made_from(model: str, tree: Path) -> tuple[str, str]:
    """sha256 of the parameters and of the code of an unpacked revision."""
    from loopline import settings
    from loopline.stages import package

    everything, ours = settings.model(model, tree / "params.yaml")
    parameters = package.canonical({"seed": everything.seed, "model": ours.model_dump(mode="json")})
    return package.sha256(parameters), package.code_hash(tree / "src/loopline", package.CODE)


def _sign(options: argparse.Namespace) -> int:
    from loopline.errors import LooplineError
    from loopline.release import signature

    key = options.key or os.environ.get("LOOPLINE_SIGN_KEY")
    if key is None and not options.keyless:
        raise LooplineError(
            "--key FILE or LOOPLINE_SIGN_KEY names the private key; --keyless signs with Sigstore instead"
        )
    for folder in options.bundle:
        print(signature.sign(folder, Path(key) if key and not options.keyless else None))
    return 0


def _verify(options: argparse.Namespace) -> int:
    from loopline.errors import LooplineError
    from loopline.release import bundle, signature

    key = options.key or os.environ.get(signature.VERIFY_KEY)
    if options.identity and not options.issuer:
        raise LooplineError("--identity needs --issuer: who says that it is theirs")
    if not key and not options.identity:
        raise LooplineError(f"--key FILE or {signature.VERIFY_KEY} names the public key; or --identity and --issuer")
    for folder in options.bundle:
        found = bundle.read(folder)
        if options.identity:
            signature.verify_keyless(folder, options.identity, options.issuer)
        elif key:
            signature.verify(found, Path(key))
        print(f"{folder}: bundle {found.version:.12} is signed by the owner of {options.identity or key}")
    return 0


def add(rooms: Verbs) -> None:
    """Put this room's verbs into the command line."""
    sign = verb(rooms, "sign", _sign, "sign bundles with OpenSSF Model Signing: bundle.sig beside each")
    sign.add_argument("--keyless", action="store_true", help="with Sigstore, as the identity of this CI job or browser")
    check = verb(rooms, "verify-signature", _verify, "is a bundle whole, and signed by whom it should be?")
    check.add_argument("--identity", help="of a keyless signature, e.g. an e-mail address or a workflow's URL")
    check.add_argument("--issuer", help="that vouches for it, e.g. https://token.actions.githubusercontent.com")
    for made, text in (
        (sign, "private key in PEM (LOOPLINE_SIGN_KEY)"),
        (check, "public key in PEM (LOOPLINE_VERIFY_KEY)"),
    ):
        made.add_argument("bundle", nargs="+", type=Path, help="folders, e.g. models/text/bundle")
        made.add_argument("--key", metavar="FILE", help=text)

    whoami = verb(
        rooms, "whoami", _whoami, "walk from a live server back to data and code; exits with 1 on a broken link"
    )
    whoami.add_argument("url", help="of a server or the gateway, e.g. http://127.0.0.1:8080")
    whoami.add_argument("--model", action="append", help="may be given several times (default: all that is served)")
    whoami.add_argument(
        "--metrics", default="", metavar="URL", help="of a server, where a gateway keeps /metrics to itself"
    )
    whoami.add_argument("--image", default="", help="or container that it runs from: its labels are a link too")
    whoami.add_argument(
        "--bundle", type=Path, metavar="FOLDER", help="of the served bundle (default: the usual places)"
    )
    whoami.add_argument(
        "--allow-missing",
        action="append",
        default=[],
        metavar="LINK",
        choices=("metrics", "image", "bundle", "registry", "revision", "dvc.lock", "parameters", "code", "data"),
        help="that cannot be looked at here; a broken one fails all the same",
    )
    whoami.add_argument("--json", action="store_true", help="for machines")
