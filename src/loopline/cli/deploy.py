"""The verbs that put bundles into service on any target: deploy, canary, verify, rollback."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from loopline.cli import monitoring, rollout
from loopline.cli.verbs import Verbs, verb
from loopline.errors import LooplineError

if TYPE_CHECKING:
    from loopline.deploy.targets import Target

OVERLAY = Path("serving/kubernetes/overlays/local")


def _target(options: argparse.Namespace) -> Target:
    """The target that the options choose, with its settings."""
    if options.target == "process":
        from loopline.deploy import process

        return process.Processes(
            options=monitoring.stack_options(options),
            controller=rollout.controller(options),
            plan=None if options.rolling else rollout.plan(options),
            again=options.again,
        )
    if options.target == "compose":
        from loopline.deploy import compose

        plan = rollout.plan(options)
        return compose.Compose(
            services=_services(options),
            share=plan.steps[0],
            plan=plan if options.wait else None,
            scrape=options.scrape,
            policy=options.policy,
        )
    from loopline.deploy import kubectl, kubernetes

    plan = rollout.plan(options)
    return kubernetes.Images(
        cluster=kubectl.Cluster(options.overlay, options.context),
        image=options.image,
        share=plan.steps[0],
        url=options.url,
        plan=plan if options.wait else None,
        prometheus=options.prometheus,
        scrape=options.scrape,
    )


def _services(options: argparse.Namespace) -> tuple[str, ...]:
    """The services of serving/compose.yaml to start: those of --services, or else all.

    The retrainer is among them only if its policy trains on GitHub, since a container has no clone of the repository.
    """
    from loopline.deploy import compose
    from loopline.retraining import policy

    named: tuple[str, ...] = tuple(options.services or compose.SERVICES)
    if compose.RETRAINER not in named or policy.load(options.policy).where == "github":
        return named
    reason = (
        f"the retrainer cannot run in a container: {options.policy} says `where: here`, which needs a clone of the "
        "repository. Run `make retrainer` in a clone, or set `where: github`"
    )
    if options.services:
        raise LooplineError(reason)
    if options.verb == "deploy":
        print(reason)
    return tuple(name for name in named if name != compose.RETRAINER)


def _deploy(options: argparse.Namespace) -> int:
    print("\n".join(getattr(_target(options), options.verb)(_bundles(options))))
    return 0


def _verify(options: argparse.Namespace) -> int:
    bundles = _bundles(options)
    differences = _target(options).verify(bundles)
    print("\n".join(differences or [f"{len(bundles)} bundles answer as they should"]))
    return 1 if differences else 0


def _rollback(options: argparse.Namespace) -> int:
    print("\n".join(_target(options).rollback(options.model)))
    return 0


def _bundles(options: argparse.Namespace) -> list[Path]:
    bundles = options.bundle or sorted(Path("models").glob("*/bundle"))
    # On Kubernetes the image holds the bundles; they are needed here only to ask the gateway at --url.
    if bundles or (options.target == "kubernetes" and not options.url):
        return list(bundles)
    raise LooplineError("no bundle under models/: run `make repro` first, or name bundle folders with --bundle")


def add(verbs: Verbs) -> None:
    """Add these verbs to the command line."""
    for name, run, text in (
        ("deploy", _deploy, "put bundles into service, with a canary if a version serves already (docs/deploy.md)"),
        ("canary", _deploy, "give new bundles a share of the traffic"),
        ("verify", _verify, "compare what is served with these bundles; prints the differences and exits with 1"),
        ("rollback", _rollback, "put the version that served before back into service"),
    ):
        command = verb(verbs, name, run, text)
        command.add_argument(
            "--target",
            choices=("process", "compose", "kubernetes"),
            default="process",
            help="place to serve at: processes or containers on this machine, or a cluster",
        )
        if name == "rollback":
            command.add_argument("model", nargs="?", help="name of the model (default: that of the last rollout)")
        command.add_argument(
            "--bundle", nargs="+", type=Path, metavar="FOLDER", help="bundle folders (default: models/*/bundle)"
        )
        command.add_argument(
            "--rolling", action="store_true", help="replace all servers without a canary; no request is lost"
        )
        command.add_argument(
            "--wait",
            action="store_true",
            help="wait until the judge has a verdict on a canary in containers or a cluster; fail unless it passes",
        )
        command.add_argument(
            "--services", nargs="+", metavar="NAME", help="services of serving/compose.yaml to start (default: all)"
        )
        cluster = command.add_argument_group("cluster")
        cluster.add_argument(
            "--overlay", type=Path, default=OVERLAY, metavar="FOLDER", help="Kustomize overlay to apply"
        )
        cluster.add_argument("--image", default="", help="image that holds the bundles (default: the overlay's)")
        cluster.add_argument("--context", default="", help="context of kubectl (default: the current one)")
        cluster.add_argument(
            "--prometheus",
            default="monitoring/prometheus-operated:9090",
            help="Prometheus of the cluster, as namespace/service:port or as an address",
        )
        cluster.add_argument(
            "--url", default="", help="address of the gateway, to send golden inputs to (default: send none)"
        )
        rollout.plan_arguments(command, command.add_argument_group("rollout"))
        stack = command.add_argument_group("stack on this machine")
        command.options_of(monitoring.STACK, group=stack, without=("gateway", "journal"))
        command.set_defaults(gateway=True)
