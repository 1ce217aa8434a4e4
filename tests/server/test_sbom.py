"""The bill of materials, made from an exported file system. tests/server/test_image.py makes one from a real image."""

import io
import json
import tarfile
from pathlib import Path

import pytest
import sbom
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from loopline.errors import LooplineError

ROOT = Path(__file__).parents[2]
PLACE = "usr/local/lib/python3.11/site-packages"
DEBIAN = "Package: libssl3\nStatus: install ok installed\nArchitecture: amd64\nVersion: 3.0.15-1~deb12u1\n"
HASH = "ab" * 32


@pytest.fixture
def lock():
    return ROOT / "serving/requirements.lock"


def wheels(lock):
    """Path -> content of the file with the name and version, for each wheel of the lock file."""
    rows = [line.split()[0].split("==") for line in lock.read_text().splitlines() if not line.startswith(" ")]
    return {
        f"{PLACE}/{name.replace('-', '_')}-{version}.dist-info/METADATA": f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\n"
        for name, version in rows
    }


def components(files):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    content.seek(0)
    with tarfile.open(fileobj=content, mode="r|") as archive:
        return sbom.components(archive)


def test_it_names_every_wheel_debian_package_and_bundle_and_fits_the_schema(lock):
    files = wheels(lock) | {"var/lib/dpkg/status.d/libssl3": DEBIAN, f"{PLACE}/numpy/core.pyc": "x"}
    names = components(files)
    sbom.check(names, lock)
    text = sbom.document("loopline", {"loopline.bundles": f"text={HASH}"}, "3.11.9", names)
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    rows = json.loads(text)["components"]
    assert len(rows) == len(wheels(lock)) + 3
    purls = {row.get("purl") for row in rows}
    assert {"pkg:deb/debian/libssl3@3.0.15-1~deb12u1?arch=amd64", "pkg:generic/python@3.11.9"} <= purls
    assert [row["hashes"] for row in rows if row["name"] == "text"] == [[{"alg": "SHA-256", "content": HASH}]]


def test_a_wheel_that_the_image_does_not_show_is_named(lock):
    files = wheels(lock)
    del files[next(name for name in files if "numpy" in name)]
    with pytest.raises(LooplineError, match=r"do not show numpy==\S+, which .*requirements\.lock names"):
        sbom.check(components(files), lock)


def test_a_wheel_that_the_lock_file_does_not_name_is_named(lock):
    files = wheels(lock) | {f"{PLACE}/evil-1.0.dist-info/METADATA": "Name: evil\nVersion: 1.0\n"}
    with pytest.raises(LooplineError, match=r"has evil==1\.0"):
        sbom.check(components(files), lock)


def test_a_document_that_does_not_fit_the_schema_is_refused(lock):
    with pytest.raises(LooplineError, match="does not hold to CycloneDX"):
        sbom.document("loopline", {"loopline.bundles": "text=no-hash"}, "3.11.9", components(wheels(lock)))
