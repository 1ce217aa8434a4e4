"""Names that a stranger can search for, and modules that can be read one after the other."""

import ast
from collections import defaultdict
from graphlib import TopologicalSorter
from pathlib import Path

import loopline

ROOT = Path(loopline.__file__).parent
MODULES = {
    ".".join(("loopline", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in ROOT.rglob("*.py")
}


def imported(module):
    """The modules of the package that a module imports, at its top or later."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            found |= {
                name if (name := f"{node.module}.{alias.name}") in MODULES else node.module for alias in node.names
            }
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & MODULES.keys() - {module}


def test_a_class_name_stands_once_in_the_package():
    where = defaultdict(list)
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                where[node.name].append(module)
    assert {name: modules for name, modules in where.items() if len(modules) > 1} == {}


# Modules that every task has, and words that do not say what a variable holds.
OF_EVERY_TASK = {"__init__", "task", "parameters", "training", "evaluation"}
VAGUE = {"found", "said", "there", "one", "wanted", "made", "ours", "theirs"}
LONGEST = 350  # lines of a module
LONGEST_FUNCTION = 60  # lines


def test_a_module_s_name_means_one_thing():
    where = defaultdict(list)
    for module, path in MODULES.items():
        where[path.stem].append(module)
    assert {name: where[name] for name in where.keys() - OF_EVERY_TASK if len(where[name]) > 1} == {}


def variables(source):
    """The names that a module's variables and parameters have."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg


def test_a_variable_is_named_by_what_it_holds():
    used = {module: VAGUE & {*variables(path.read_text(encoding="utf-8"))} for module, path in MODULES.items()}
    assert {module: names for module, names in used.items() if names} == {}
    assert VAGUE & {*variables("def f(said):\n    return [one for one in said]")} == {"said", "one"}


def test_a_module_can_be_read_at_once():
    lines = {module: len(path.read_text(encoding="utf-8").splitlines()) for module, path in MODULES.items()}
    assert {module: count for module, count in lines.items() if count > LONGEST} == {}


def long_functions(source):
    """The names of the functions and methods that have more than LONGEST_FUNCTION lines."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, kinds)]
    return {node.name for node in functions if node.end_lineno - node.lineno + 1 > LONGEST_FUNCTION}


def test_a_function_can_be_read_at_once():
    names = {module: long_functions(path.read_text(encoding="utf-8")) for module, path in MODULES.items()}
    assert {module: functions for module, functions in names.items() if functions} == {}
    body = "\n    pass"
    assert long_functions("def short():" + body * (LONGEST_FUNCTION - 1)) == set()
    assert long_functions("class A:\n  async def long(self):" + body * LONGEST_FUNCTION) == {"long"}


def test_no_two_modules_import_each_other_by_any_way():
    """Types count too: who reads one module of a circle must read all. Raises CycleError, which names them."""
    assert len(list(TopologicalSorter({module: imported(module) for module in MODULES}).static_order())) == len(MODULES)
