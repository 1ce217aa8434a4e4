"""The verbs that prove where a bundle comes from: signatures and lineage."""

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
    """The sha256 of the parameters and that of the code of a revision that is unpacked at `tree`."""
    from loopline import settings
    from loopline.stages import package, stage_files

    everything, chosen = settings.model(model, tree / "params.yaml")
    return stage_files.parameters(everything.seed, chosen), package.code_of(chosen.task, tree / "src/loopline")


def _sign(options: argparse.Namespace) -> int:
    from loopline.errors import LooplineError
    from loopline.release import signature

    key = options.key or os.environ.get("LOOPLINE_SIGN_KEY")
    if key is None and not options.keyless:
        raise LooplineError(
            "no private key: name its file with --key FILE or LOOPLINE_SIGN_KEY, or sign with Sigstore by --keyless"
        )
    for folder in options.bundle:
        print(signature.sign(folder, Path(key) if key and not options.keyless else None))
    return 0


def _verify(options: argparse.Namespace) -> int:
    from loopline.errors import LooplineError
    from loopline.release import bundle, signature

    key = options.key or os.environ.get(signature.VERIFY_KEY)
    if options.identity and not options.issuer:
        raise LooplineError("--identity needs --issuer: add the address of the provider that vouches for the identity")
    if not key and not options.identity:
        raise LooplineError(
            f"no public key: name its file with --key FILE or {signature.VERIFY_KEY}, or use --identity and --issuer"
        )
    for folder in options.bundle:
        opened = bundle.read(folder)
        if options.identity:
            signature.verify_keyless(folder, options.identity, options.issuer)
        elif key:
            signature.verify(opened, Path(key))
        print(f"{folder}: bundle {opened.version:.12} is signed by the owner of {options.identity or key}")
    return 0


def add(verbs: Verbs) -> None:
    """Add these verbs to the command line."""
    sign = verb(verbs, "sign", _sign, "sign bundles with OpenSSF Model Signing: writes bundle.sig beside each")
    sign.add_argument(
        "--keyless", action="store_true", help="sign with Sigstore, as the identity of this CI job or browser"
    )
    check = verb(verbs, "verify-signature", _verify, "check that bundles are complete and signed by the expected owner")
    check.add_argument("--identity", help="signer of a keyless signature, e.g. an e-mail address or a workflow's URL")
    check.add_argument(
        "--issuer",
        help="identity provider that vouches for --identity, e.g. https://token.actions.githubusercontent.com",
    )
    for command, text in (
        (sign, "file with the private key in PEM (default: LOOPLINE_SIGN_KEY)"),
        (check, "file with the public key in PEM (default: LOOPLINE_VERIFY_KEY)"),
    ):
        command.add_argument("bundle", nargs="+", type=Path, help="bundle folders, e.g. models/text/bundle")
        command.add_argument("--key", metavar="FILE", help=text)

    whoami = verb(
        verbs, "whoami", _whoami, "trace a live server back to its data and code; exits with 1 if a link is broken"
    )
    whoami.add_argument("url", help="address of a server or the gateway, e.g. http://127.0.0.1:8080")
    whoami.add_argument(
        "--model", action="append", help="name of a model; repeat for several (default: all served models)"
    )
    whoami.add_argument(
        "--metrics",
        default="",
        metavar="URL",
        help="address of a server, needed where the gateway does not pass on /metrics (default: that of url)",
    )
    whoami.add_argument(
        "--image", default="", help="image or container of the server, to check its labels (default: not checked)"
    )
    whoami.add_argument(
        "--bundle", type=Path, metavar="FOLDER", help="folder of the served bundle (default: the usual places)"
    )
    whoami.add_argument(
        "--allow-missing",
        action="append",
        default=[],
        metavar="LINK",
        choices=("metrics", "image", "bundle", "registry", "revision", "dvc.lock", "parameters", "code", "data"),
        help="link that may be missing here; repeat for several (default: none). A broken link fails all the same",
    )
    whoami.add_argument("--json", action="store_true", help="print one JSON object")
