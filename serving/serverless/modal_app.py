"""Modal: `modal deploy serving/serverless/modal_app.py` in the repository's root, once `make repro` has made the bundles."""

import subprocess

import modal

image = (
    modal.Image.debian_slim(python_version="3.11")
    .pip_install_from_requirements("serving/requirements.lock", extra_options="--no-deps --require-hashes")
    .add_local_python_source("loopline")
    .add_local_dir("models", "/bundles", ignore=~modal.FilePatternMatcher("*/bundle/**"))
)
app = modal.App("loopline", image=image)


@app.function(cpu=2, memory=1024, min_containers=0, max_containers=10, scaledown_window=300)
@modal.concurrent(max_inputs=80, target_inputs=10)
@modal.web_server(8080, startup_timeout=60, requires_proxy_auth=True)
def server() -> None:
    """One server; it batches what comes at once."""
    subprocess.Popen(["python", "-m", "loopline.cli", "serve", "/bundles", "--host", "0.0.0.0", "--no-demo"])  # noqa: S104
