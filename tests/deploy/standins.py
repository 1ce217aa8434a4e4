"""Images with this machine's own haproxy, prometheus and alertmanager, under the names in serving/compose.yaml.

They let the stack run without a registry, with the project's real files and Debian's programs.
"""

import os
import re
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
BASE = "docker.io/library/python:3.11-slim-bookworm"
PROGRAMS = {
    "gateway": (["haproxy"], "/usr/local/sbin/haproxy", "99:99", ()),
    "prometheus": (["prometheus"], "/usr/bin/prometheus", "65534:65534", ("/prometheus",)),
    "alertmanager": (
        ["prometheus-alertmanager", "alertmanager"],
        "/usr/bin/alertmanager",
        "65534:65534",
        ("/alertmanager",),
    ),
}


def make(engine, services=tuple(PROGRAMS)):
    """Build the missing images, and return the names of all."""
    images = {
        name: service["image"]
        for name, service in yaml.safe_load((ROOT / "serving/compose.yaml").read_text())["services"].items()
    }
    for service in services:
        if subprocess.run([engine, "image", "inspect", images[service]], capture_output=True).returncode:
            _build(engine, images[service], *PROGRAMS[service], command=service != "gateway")
    return [images[service] for service in services]


def operations(engine, image):
    """Build the project's own image of sentinel, journal and retrainer."""
    arguments = [*shlex.split(os.environ.get("IMAGE_BUILD_ARGS", "")), "--target", "operations", "--tag", image]
    dockerfile = ["--file", str(ROOT / "serving/Dockerfile.operations")]
    subprocess.run([engine, "build", *arguments, *dockerfile, str(ROOT)], check=True, capture_output=True, timeout=900)


def _build(engine, image, names, at, user, folders, *, command):
    program = next(path for name in names if (path := shutil.which(name)))
    shared = Path("/usr/share/prometheus") / Path(at).name  # Debian's program reads its templates from files
    with tempfile.TemporaryDirectory() as context:
        linked = subprocess.run(["ldd", program], capture_output=True, text=True).stdout
        for path in [program, *re.findall(r"(/\S+) \(0x", linked)]:
            to = Path(context, "root", at[1:] if path == program else "opt/lib/" + Path(path).name)
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, to)
        if shared.is_dir():
            shutil.copytree(shared, f"{context}/root{shared}")
        for folder in folders:
            Path(context, "root" + folder).mkdir(parents=True)
        lines = [f"FROM {BASE}", "COPY root /"]
        lines += [f"RUN chown {user} {folder}" for folder in folders]
        lines += ["ENV LD_LIBRARY_PATH=/opt/lib", f"USER {user}"] + ([f'ENTRYPOINT ["{at}"]'] if command else [])
        Path(context, "Dockerfile").write_text("\n".join(lines) + "\n")
        arguments = shlex.split(os.environ.get("IMAGE_BUILD_ARGS", ""))
        subprocess.run([engine, "build", *arguments, "--tag", image, context], check=True, capture_output=True)
