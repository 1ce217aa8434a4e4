"""Find the modules of the package that a module needs, by its imports, also in functions and by `import_module(...)`."""

import ast
import re
from functools import cache
from pathlib import Path

SRC = Path(__file__).parents[2] / "src"


def name_of(path):
    parts = path.relative_to(SRC).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(path): path for path in SRC.rglob("*.py")}


def for_types_alone(tree):
    blocks = (node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
    return {id(inner) for block in blocks for statement in block.body for inner in ast.walk(statement)}


@cache
def has_code(module):
    """Return whether the module has more than a docstring."""
    return any(not isinstance(node, ast.Expr) for node in ast.parse(FILES[module].read_text(encoding="utf-8")).body)


@cache
def imports(module, task):
    """Return the full names of the module's imports. task: the model's task. A field in an f-string stands for any word."""
    tree = ast.parse(FILES[module].read_text(encoding="utf-8"))
    skipped, names = for_types_alone(tree), set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Call) and module != "loopline.tasks.plugins":
            names |= called(node, task)
    return names


def called(node, task):
    """Return the modules that a call may load, by `import_module` of a string or f-string, or from the task's folder."""
    function = ast.unparse(node.func)
    if function.endswith("import_module"):
        argument = node.args[0]
        parts = argument.values if isinstance(argument, ast.JoinedStr) else [argument]
        assert all(isinstance(part, ast.Constant | ast.FormattedValue) for part in parts), ast.unparse(argument)
        pattern = "".join(re.escape(part.value) if isinstance(part, ast.Constant) else r"\w+" for part in parts)
        return {name for name in FILES if re.fullmatch(pattern, name)}
    if function in ("find", "tasks.find"):
        return {f"loopline.tasks.{task}.task"}
    for method, part in (("trainer", "training"), ("evaluator", "evaluation")):
        if function.endswith(f".{method}"):
            return {f"loopline.tasks.{task}.{part}"}
    if function == "part" and isinstance(node.args[1], ast.Constant) and isinstance(node.args[0], ast.Name):
        return {f"loopline.tasks.{task}.{node.args[1].value}"}
    return set()


def needed(module, task):
    """Return the modules with code that `module` needs, including itself."""
    todo, seen = {module}, set()
    while todo:
        name = todo.pop()
        if name in FILES and name not in seen:
            seen.add(name)
            todo |= imports(name, task) | {name.rpartition(".")[0]}
    return {name for name in seen if has_code(name)}
