"""What is in the image, as a CycloneDX 1.6 bill of materials that vulnerability scanners read: `make sbom`.

    python serving/sbom.py [--image loopline] [--lock serving/requirements.lock] [--out .loopline/sbom.cdx.json]

Reads the image's own files, exported by podman or docker, not what was meant to be in it: the metadata of each wheel, the Debian
packages that its libraries are from, the interpreter, and the bundles that its label names. Exits with 1 where the wheels are not
exactly those of the lock file, or where the result does not hold to CycloneDX' schema.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterable
from email.parser import BytesHeaderParser
from pathlib import Path

from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.dependency import Dependency
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from image import ROOT, engine
from packageurl import PackageURL

from loopline.errors import LooplineError

SCHEMA = SchemaVersion.V1_6
WHEEL = re.compile(r"(?:\./)?usr/local/lib/python3\.\d+/site-packages/[^/]+\.dist-info/METADATA")
# Where images without dpkg keep it, and scanners look for it
DEBIAN = re.compile(r"(?:\./)?var/lib/dpkg/status\.d/[^/]+")


def components(archive: tarfile.TarFile) -> list[Component]:
    """Of each wheel and each Debian package in an image's exported file system."""
    found = []
    for member in archive:
        kind = "pypi" if WHEEL.fullmatch(member.name) else "deb" if DEBIAN.fullmatch(member.name) else None
        if kind is None or (file := archive.extractfile(member)) is None:
            continue
        said = BytesHeaderParser().parsebytes(file.read())
        name, version = said["Name"] or said["Package"], said["Version"]
        if kind == "pypi":
            name = re.sub(r"[-_.]+", "-", name).lower()
            purl = PackageURL("pypi", None, name, version)
        else:
            purl = PackageURL("deb", "debian", name, version, {"arch": said["Architecture"]})
        found.append(Component(name=name, version=version, purl=purl, bom_ref=purl.to_string()))
    return found


def check(found: Iterable[Component], lock: Path) -> None:
    """Are the wheels exactly those of the lock file? Raises LooplineError naming what is missing, or too much."""
    locked = set(re.findall(r"^([\w.-]+==[\w.!+-]+)", lock.read_text(encoding="utf-8"), re.MULTILINE))
    there = {f"{one.name}=={one.version}" for one in found if one.purl and one.purl.type == "pypi"}
    if missing := locked - there:
        raise LooplineError(f"the image's files do not show {', '.join(sorted(missing))}, which {lock} names")
    if more := there - locked:
        raise LooplineError(f"the image has {', '.join(sorted(more))}, which {lock} does not name")


def document(name: str, labels: dict[str, str], python: str, found: list[Component]) -> str:
    """The bill of materials. Raises LooplineError where it does not hold to the schema."""
    image = Component(
        type=ComponentType.CONTAINER,
        name=name,
        version=labels.get("org.opencontainers.image.version"),
        bom_ref="image",
        properties=[Property(name=key, value=value) for key, value in sorted(labels.items())],
    )
    purl = PackageURL("generic", None, "python", python)
    interpreter = Component(
        type=ComponentType.PLATFORM, name="python", version=python, purl=purl, bom_ref=purl.to_string(),
        cpe=f"cpe:2.3:a:python:python:{python}:*:*:*:*:*:*:*",
    )  # fmt: skip
    bundles = [
        Component(
            type=ComponentType.MACHINE_LEARNING_MODEL,
            name=model,
            version=version,
            bom_ref=f"bundle:{model}",
            hashes=[HashType(alg=HashAlgorithm.SHA_256, content=version)],
        )
        for model, _, version in (word.partition("=") for word in labels.get("loopline.bundles", "").split())
    ]
    everything = [*found, interpreter, *bundles]
    bom = Bom(components=everything)
    bom.metadata.component = image
    bom.dependencies.add(Dependency(image.bom_ref, [Dependency(one.bom_ref) for one in everything]))
    text = make_outputter(bom, OutputFormat.JSON, SCHEMA).output_as_string(indent=2)
    if wrong := JsonStrictValidator(SCHEMA).validate_str(text):
        raise LooplineError(f"the bill of materials does not hold to CycloneDX {SCHEMA.to_version()}: {wrong}")
    return text


def make(image: str, lock: Path) -> str:
    """The bill of materials of an image that is here. Raises LooplineError."""
    program = engine()
    if program is None:
        raise LooplineError("no container engine answers here: install podman, or start docker")

    def said(*words: str) -> str:
        done = subprocess.run([program, *words], capture_output=True, text=True, check=False)
        if done.returncode:
            raise LooplineError(f"{program} {words[0]} {image}: {done.stderr.strip()}")
        return done.stdout.strip()

    labels = json.loads(said("image", "inspect", "--format", "{{json .Config.Labels}}", image)) or {}
    python = said("run", "--rm", "--network=none", "--entrypoint=python3", image, "--version").removeprefix("Python ")
    container = said("create", image)
    try:
        exported = subprocess.Popen([program, "export", container], stdout=subprocess.PIPE)
        with exported, tarfile.open(fileobj=exported.stdout, mode="r|") as archive:
            found = components(archive)
    finally:
        said("rm", container)
    check(found, lock)
    return document(image, labels, python, found)


def main() -> int:
    """The command line."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--image", default="loopline")
    options.add_argument("--lock", type=Path, default=ROOT / "serving/requirements.lock", help="of a gpu image its own")
    options.add_argument("--out", type=Path, default=ROOT / ".loopline/sbom.cdx.json")
    given = options.parse_args()
    try:
        text = make(given.image, given.lock)
    except LooplineError as error:
        print(f"sbom: {error}", file=sys.stderr)
        return 1
    given.out.parent.mkdir(parents=True, exist_ok=True)
    partial = given.out.with_name(f"{given.out.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(given.out)
    print(f"{given.out}: {len(json.loads(text)['components'])} components")
    return 0


if __name__ == "__main__":
    sys.exit(main())
