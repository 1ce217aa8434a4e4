"""Build the server's image with podman or docker, say how large it is, and refuse one over its budget: `make image`.

    python serving/image.py [--tag loopline] [--target cpu|gpu] [--no-demo] [--bundles models/*/bundle] [--base IMAGE@sha256:...]

Reads serving/Dockerfile and, with --bundles, serving/Dockerfile.bundles. IMAGE_BUILD_ARGS in the environment is handed to the engine,
e.g. a proxy's certificates. Exits with 1 where the image is over budget, or cannot be built.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Sequence
from functools import partial
from itertools import chain
from pathlib import Path

from loopline import __version__
from loopline.errors import LooplineError
from loopline.release import bundle, signature

ROOT = Path(__file__).parents[1]
BUDGET_MB, BUDGET_COMPRESSED_MB = 133.0, 50.0  # of the cpu image without bundles; CUDA alone is over 2 GB
CHUNK = 1 << 20


def engine() -> str | None:
    """The container engine that works here: podman, else docker. None: a client without an engine does not count."""
    for name in ("podman", "docker"):
        if shutil.which(name) and subprocess.run([name, "info"], capture_output=True, check=False).returncode == 0:
            return name
    return None


def build(program: str, dockerfile: str, context: Path, tag: str, arguments: dict[str, str], *more: str) -> None:
    """One image. `arguments` are build arguments. Raises LooplineError where the engine fails."""
    words = [program, "build", *shlex.split(os.environ.get("IMAGE_BUILD_ARGS", "")), "--tag", tag, *more]
    for name, value in arguments.items():
        words += ["--build-arg", f"{name}={value}"]
    words += ["--file", str(ROOT / "serving" / dockerfile), str(context)]
    done = subprocess.run(words, check=False, stdout=sys.stderr, env=os.environ | {"BUILDAH_FORMAT": "docker"})
    if done.returncode:
        raise LooplineError(f"{program} could not build {tag}: its words are above")


def measure(program: str, tag: str) -> tuple[float, float]:
    """Megabytes (10^6 bytes) of an image's layers, plain and as a registry keeps them (gzip)."""
    plain = packed = 0
    saved = subprocess.Popen([program, "save", tag], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    with saved, tarfile.open(fileobj=saved.stdout, mode="r|") as archive:
        for member in archive:
            content = archive.extractfile(member) if member.isfile() else None
            if content is None:
                continue
            first = content.read(CHUNK)
            chunks = chain([first], iter(partial(content.read, CHUNK), b""))
            if first.startswith(b"\x1f\x8b"):  # an engine that keeps its layers packed
                unpack = zlib.decompressobj(wbits=31)
                plain += sum(len(unpack.decompress(chunk)) for chunk in chunks)
                packed += member.size
            else:
                pack = zlib.compressobj(wbits=31)
                plain += member.size
                packed += sum(len(pack.compress(chunk)) for chunk in chunks) + len(pack.flush())
    if saved.returncode:
        raise LooplineError(f"{program} save {tag} failed with {saved.returncode}")
    return plain / 1e6, packed / 1e6


def revision() -> str:
    """The git revision, with `-dirty` where files differ from it."""
    words = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"  # an archive of the sources


def add_bundles(program: str, base: str, tag: str, bundles: Sequence[bundle.Bundle]) -> str:
    """`tag`: the image `base` with the bundles in it. Returns their names and hashes as the label says them."""
    with tempfile.TemporaryDirectory() as context:
        for one in bundles:
            copied = shutil.copytree(one.folder, Path(context, one.manifest.name))
            signature.carry(one.folder, copied)
        for path in Path(context).rglob("*"):  # the server is not the one who made them
            path.chmod(0o755 if path.is_dir() else 0o644)
        label = " ".join(sorted(f"{one.manifest.name}={one.version}" for one in bundles))
        build(program, "Dockerfile.bundles", Path(context), tag, {"IMAGE": base, "BUNDLES": label})
    return label


def make(given: argparse.Namespace) -> None:
    """Build, measure, judge. Raises LooplineError."""
    program = engine()
    if program is None:
        raise LooplineError("no container engine answers here: install podman, or start docker")
    bundles = [bundle.read(folder) for folder in given.bundles]
    base = f"{given.tag}-{given.target}" if bundles else given.tag
    arguments = {"REVISION": revision(), "VERSION": __version__, "DEMO": "1" if given.demo else "0"}
    if given.base:
        arguments["BASE"] = given.base
    # The revision is said twice: podman 4 takes a LABEL from its cache, whatever its build argument has become. And no --target for
    # the default, because it gives --label to the last stage alone.
    more = [f"--label=org.opencontainers.image.revision={arguments['REVISION']}"]
    more += ["--target", given.target] if given.target != "cpu" else []
    build(program, "Dockerfile", ROOT, base, arguments, *more)
    plain, packed = measure(program, base)
    limited = given.target == "cpu"
    limits = f" (budget {given.budget:g} MB, {given.budget_compressed:g} MB)" if limited else ""
    print(f"{base}: {plain:.1f} MB, compressed {packed:.1f} MB{limits}")
    if limited and (plain > given.budget or packed > given.budget_compressed):
        raise LooplineError(
            f"{base} is over its budget: see what grew with `{program} history {base}` and serving/assemble.py"
        )
    if bundles:
        print(f"{given.tag}: with {add_bundles(program, base, given.tag, bundles)}")


def main() -> int:
    """The command line."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--tag", default="loopline")
    options.add_argument("--target", choices=("cpu", "gpu"), default="cpu")
    options.add_argument("--no-demo", dest="demo", action="store_false", help="leave the demo page out")
    options.add_argument("--base", help="the Python image to build from, e.g. pinned by its digest")
    options.add_argument("--bundles", nargs="*", default=[], type=Path, help="folders to put into the image")
    options.add_argument("--budget", type=float, default=BUDGET_MB, metavar="MB")
    options.add_argument("--budget-compressed", type=float, default=BUDGET_COMPRESSED_MB, metavar="MB")
    try:
        make(options.parse_args())
    except LooplineError as error:
        print(f"image: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
