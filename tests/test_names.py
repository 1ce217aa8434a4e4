"""Names that a stranger can search for."""

import ast
from collections import defaultdict
from pathlib import Path

import loopline

ROOT = Path(loopline.__file__).parent


def test_a_class_name_stands_once_in_the_package():
    where = defaultdict(list)
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                where[node.name].append(path.relative_to(ROOT).as_posix())
    assert {name: paths for name, paths in where.items() if len(paths) > 1} == {}
