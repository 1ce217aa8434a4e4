"""Lay out the image's whole file system: the interpreter, the packages, the shared libraries they ask for, and no more.

    python serving/assemble.py PACKAGES LOOPLINE ROOT [--demo 0]

Runs inside the build (see Dockerfile), with the standard library alone. What is left out is named in trim.txt; what is left is
proved by tests/server/test_image.py, which serves every task from the result. Modules are kept as bytecode, which starts faster
and is half the size; Loopline's own keep their source, so that its tracebacks can be read.
"""

from __future__ import annotations

import argparse
import compileall
import os
import py_compile
import re
import shutil
import struct
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

STDLIB = Path(sysconfig.get_path("stdlib"))
TRIM = Path(__file__).with_name("trim.txt")
LOOPLINE = (
    "__init__.py",
    "cli",
    "drift",
    "errors.py",
    "lib",
    "release",
    "server",
    "tasks",
)
OF_A_TASK = {"__init__.py", "task.py"}  # what a server imports of a task's folder; the rest is its training
DEMO = ("server/pages/index.html", "server/pages/assets")
HEADER = "<IIQQQQQQ"  # of a segment: type, flags, offset, two addresses, size in the file and in memory, alignment
PT_LOAD = 1
FROM_HOST = ("libcuda.", "libnvinfer", "libnvonnxparser")  # a driver, and TensorRT where somebody mounts it
COMMAND = "#!{python}\nimport sys\n\nfrom loopline.cli import main\n\nsys.exit(main())\n"


def trimmed(room: str) -> list[str]:
    """The patterns of trim.txt under `room`."""
    lines = TRIM.read_text(encoding="utf-8").splitlines()
    return [line.removeprefix(f"{room}/") for line in lines if line.startswith(f"{room}/")]


def remove(folder: Path, patterns: Iterable[str]) -> None:
    """Everything under `folder` that a pattern names."""
    for pattern in patterns:
        for path in sorted(folder.glob(pattern), reverse=True):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def copy(source: Path, target: Path) -> None:
    """A file or a folder, with the folders above it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source, target) if source.is_dir() else shutil.copy2(source, target)


def libraries(files: Iterable[Path], cuda: Iterable[Path]) -> set[Path]:
    """The shared libraries, and the loader, that `files` ask for, as the loader finds them here and in the folders `cuda`.

    Raises SystemExit if one cannot be found.
    """
    environment = os.environ | {"LD_LIBRARY_PATH": ":".join(map(str, cuda))}
    words = ["ldd", *map(str, files)]
    said = subprocess.run(words, capture_output=True, text=True, check=True, env=environment).stdout
    missing = sorted({name for name in re.findall(r"(\S+) => not found", said) if not name.startswith(FROM_HOST)})
    if missing:
        sys.exit(f"assemble: not in the base image: {', '.join(missing)}")
    return {Path(name) for name in re.findall(r"^\s(?:\S+ => )?(/\S+) \(0x", said, re.MULTILINE)}


def place(library: Path, root: Path) -> None:
    """A library into `root` at the place where the loader looks for it, whatever links lead there."""
    target = root / library.parent.resolve().relative_to("/") / library.name
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(library.resolve(), target)


def owners(libraries: Iterable[Path], root: Path) -> None:
    """Say in `root` which Debian packages the libraries are from, at the place where scanners look in images without dpkg.

    Raises SystemExit on one outside /usr/local that no package has. Does nothing where the base is not Debian's.
    """
    if shutil.which("dpkg-query") is None:
        return
    short = {str(path).removeprefix("/usr") for path in libraries if not path.is_relative_to("/usr/local")}
    names = [f"{prefix}{name}" for name in sorted(short) for prefix in ("", "/usr")]  # dpkg knows either
    found = subprocess.run(["dpkg-query", "--search", *names], capture_output=True, text=True, check=False).stdout
    rows = dict(line.rsplit(": ", 1)[::-1] for line in found.splitlines())
    if lost := sorted(name for name in short if name not in rows and f"/usr{name}" not in rows):
        sys.exit(f"assemble: no Debian package has {', '.join(lost)}")
    folder = root / "var/lib/dpkg/status.d"
    folder.mkdir(parents=True)
    for package in sorted(set(rows.values())):
        said = subprocess.run(["dpkg-query", "--status", package], capture_output=True, text=True, check=True).stdout
        (folder / package.partition(":")[0]).write_text(said, encoding="utf-8")
    copy(Path("/etc/os-release").resolve(), root / "etc/os-release")


def strip(path: Path) -> None:
    """Keep of an ELF file what is loaded: its segments, moved together. Symbols for debuggers and section headers go.

    Some wheels are four fifths debug information, others have holes where auditwheel moved things; binutils, which would do a part
    of this, is not in a slim base image. A segment keeps its offset modulo its alignment, as the ELF specification (gABI, "Program
    Header") demands, and addresses in memory do not change.
    """
    data = path.read_bytes()
    if data[:6] != b"\x7fELF\x02\x01":  # 64 bits, little end first: all that Python images are made for
        return
    (table,) = struct.unpack_from("<Q", data, 0x20)
    size, count = struct.unpack_from("<HH", data, 0x36)
    headers = [struct.unpack_from(HEADER, data, table + size * row) for row in range(count)]
    moves = []  # start and end in the old file, start in the new one
    end = 0
    for kind, _, offset, _, _, length, _, align in sorted(headers, key=lambda header: header[2]):
        if kind == PT_LOAD:
            start = end + (offset - end) % max(align, 1)
            moves.append((offset, offset + length, start))
            end = start + length

    def moved(offset: int) -> int:
        return next((offset - old + new for old, stop, new in moves if old <= offset < stop), offset)

    made = bytearray(end)
    for old, stop, new in moves:
        made[new : new + stop - old] = data[old:stop]
    struct.pack_into("<QQ", made, 0x20, moved(table), 0)
    struct.pack_into("<HHH", made, 0x3A, 0, 0, 0)
    for row, (kind, flags, offset, *rest) in enumerate(headers):
        struct.pack_into(HEADER, made, moved(table) + size * row, kind, flags, moved(offset), *rest)
    path.write_bytes(made)


def bytecode(folder: Path, root: Path, *, keep_source: bool) -> None:
    """Compile `folder`; the server then writes nothing, and looks at no source's time."""
    fine = compileall.compile_dir(
        folder,
        quiet=1,
        legacy=not keep_source,
        stripdir=str(root),
        prependdir="/",
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )
    if not fine:
        sys.exit(f"assemble: {folder} does not compile")
    if not keep_source:
        remove(folder, ["**/*.py"])


def copy_loopline(source: Path, target: Path) -> None:
    """What a server needs of src/loopline."""
    for name in LOOPLINE:
        copy(source / name, target / name)
    for path in (target / "tasks").glob("*/*"):
        if path.name not in OF_A_TASK:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def main() -> None:
    """Make the folder ROOT."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("packages", type=Path, help="where pip installed the requirements")
    options.add_argument("loopline", type=Path, help="src/loopline")
    options.add_argument("root", type=Path, help="what becomes / of the image")
    options.add_argument("--demo", choices=("0", "1"), default="1", help="0 leaves the demo page out")
    given = options.parse_args()
    root: Path = given.root
    stdlib = root / STDLIB.relative_to("/")
    packages = stdlib / "site-packages"
    remove(given.packages, trimmed("packages"))
    shutil.copytree(STDLIB, stdlib, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "site-packages"))
    remove(stdlib, trimmed("stdlib"))
    shutil.copytree(given.packages, packages, ignore=shutil.ignore_patterns("__pycache__"))
    bytecode(stdlib, root, keep_source=False)
    own = packages / "loopline"
    copy_loopline(given.loopline, own)
    if given.demo == "0":
        remove(own, DEMO)
    bytecode(own, root, keep_source=True)

    for link in ("lib", "lib64", "bin", "sbin"):  # as in Debian: the loader's own path goes through them
        (root / "usr" / link).mkdir(parents=True, exist_ok=True)
        (root / link).symlink_to(f"usr/{link}")
    python = Path(sys.executable).resolve()
    binary = root / python.relative_to("/")
    binary.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(python, binary)
    (binary.parent / "python3").symlink_to(python.name)
    command = binary.parent / "loopline"
    command.write_text(COMMAND.format(python=python), encoding="ascii")
    command.chmod(0o755)
    modules = [*STDLIB.glob("lib-dynload/*.so"), *given.packages.rglob("*.so*")]
    kept = [
        path for path in modules if path.is_relative_to(given.packages) or (stdlib / path.relative_to(STDLIB)).exists()
    ]
    cuda = sorted(given.packages.resolve().glob("nvidia/*/lib"))
    needed = {one for one in libraries([python, *kept], cuda) if not one.is_relative_to(given.packages.resolve())}
    for library in needed:
        place(library, root)
    owners(needed, root)
    for path in (binary, *root.rglob("*.so*")):
        if not path.is_symlink() and "nvidia" not in path.parts:  # NVIDIA's are packed as they should be
            strip(path)

    etc = root / "etc"
    etc.mkdir(exist_ok=True)
    (etc / "passwd").write_text("nonroot:x:65532:65532::/:/nonexistent\n", encoding="ascii")
    (etc / "group").write_text("nonroot:x:65532:\n", encoding="ascii")
    places = [
        "/usr/local/lib",
        *(f"/{packages.relative_to(root) / path.relative_to(given.packages.resolve())}" for path in cuda),
    ]
    (etc / "ld.so.conf").write_text("\n".join([*places, ""]), encoding="ascii")
    subprocess.run(["ldconfig", "-r", str(root)], check=True)  # there is no ldconfig in the image
    (root / "bundles").mkdir()
    tmp = root / "tmp"
    tmp.mkdir()
    tmp.chmod(0o1777)


if __name__ == "__main__":
    main()
