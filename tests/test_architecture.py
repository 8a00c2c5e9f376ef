"""The design's arrows and limits, held by reading the source: imports, where ranks live, how long things are."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "megatron_medx"
MODULES = sorted(PACKAGE.rglob("*.py"))
PROGRAMS = [path for folder in ("examples", "tools", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))]

MAX_FILE_LINES, MAX_FUNCTION_LINES = 350, 60

MAY_IMPORT = {
    "errors": set(),
    "terminal": set(),
    "config": {"errors"},
    "recipes": {"config", "errors"},
    "run_folder": {"config", "errors", "terminal"},
    "data": {"config", "errors"},
    "parallel": {"config", "errors"},
    "models": {"config", "parallel", "errors"},
    "checkpoint": {"config", "models", "parallel", "run_folder", "errors"},
    "training": {"config", "data", "models", "parallel", "checkpoint", "planner", "run_folder", "errors", "terminal"},
    "planner": {"config", "recipes", "data", "parallel", "errors"},
    "preflight": {"config", "run_folder", "parallel", "errors", "terminal"},
    "status": {"config", "run_folder", "errors"},
    "report": {"config", "data", "recipes", "run_folder", "status", "errors"},
    "watch": {"config", "run_folder", "status", "errors", "terminal"},
    "launch": {"config", "run_folder", "errors", "terminal"},
    "job": {"config", "run_folder", "errors", "terminal"},
    "generate": {"data", "errors"},
    "doctor": {"config"},
    "cli": None,
    "cli_data": None,
    "cli_job": None,
    "cli_plan": None,
    "cli_look": None,
    "cli_launch": None,
    "cli_convert": None,
    "cli_weights": None,
    "cli_arguments": {"config", "recipes", "errors"},
}
"""Part of the package -> the other parts it may import; None is any. A new part needs a line here."""

NEVER = {
    "errors": ("torch", "megatron", "transformers", "numpy"),
    "config": ("torch", "megatron", "transformers", "numpy"),
    "recipes": ("torch", "megatron", "transformers", "numpy"),
    "data": ("megatron", "torch.distributed"),
    "planner": ("torch", "megatron", "transformers"),
    "models": ("torch.distributed", "os", "megatron.training", "megatron.core.parallel_state", "megatron.core.mpu"),
    "run_folder": ("torch", "megatron", "transformers", "numpy"),
    "status": ("torch", "megatron", "transformers", "numpy"),
    "report": ("torch", "megatron", "transformers"),
    "watch": ("torch", "megatron", "transformers"),
    "launch": ("torch", "megatron", "transformers", "numpy"),
    "job": ("torch", "megatron", "transformers", "numpy"),
    "generate": ("megatron",),
}
"""Part -> what it never imports from outside."""

MAKES_GROUPS = {
    "init_process_group",
    "new_group",
    "new_subgroups",
    "new_subgroups_by_enumeration",
    "init_device_mesh",
    "initialize_model_parallel",
    "destroy_process_group",
    "destroy_model_parallel",
}
"""Functions that make or end process groups: parallel/ alone calls them (training leaves them to megatron.training)."""


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def part_of(path: Path) -> str:
    """`config` for megatron_medx/config/run.py, `cli` for megatron_medx/cli.py."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything imported, at any depth: `from a.b import c` gives a.b.c."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}:{node.lineno}: relative import"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def dotted(node: ast.AST) -> str:
    """`torch.distributed.barrier` of an attribute chain; empty for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (owner := dotted(node.value)):
        return f"{owner}.{node.attr}"
    return ""


def is_under(name: str, owner: str) -> bool:
    return name == owner or name.startswith(owner + ".")


def functions(path: Path) -> Iterator[ast.FunctionDef]:
    return (node for node in ast.walk(tree(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def test_every_part_has_its_arrows():
    parts = {part_of(path) for path in MODULES if path != PACKAGE / "__init__.py"}
    assert parts == set(MAY_IMPORT)


def exported(path: Path) -> set[str]:
    """Names that the top level of a module defines or imports."""
    names = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
    return names


@pytest.mark.parametrize("path", [*MODULES, *PROGRAMS], ids=name_of)
def test_what_is_imported_from_the_package_is_there(path):
    """Programs are run by people, not by tests: a name that has moved would be found by them."""
    missing = []
    for line, name in imports(path):
        owner, _, last = name.rpartition(".")
        module = ROOT.joinpath(*owner.split(".")) if owner else ROOT
        source = module / "__init__.py" if module.is_dir() else module.with_suffix(".py")
        if is_under(name, "megatron_medx") and source.is_file() and not (module / last).with_suffix(".py").is_file():
            if not (module / last).is_dir() and last not in exported(source):
                missing.append(f"{name_of(path)}:{line}: {name}")
        elif is_under(name, "megatron_medx") and not source.is_file():
            missing.append(f"{name_of(path)}:{line}: {name}")
    assert not missing


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_imports_follow_the_arrows(part):
    allowed = MAY_IMPORT[part]
    wrong = []
    for path in (path for path in MODULES if part_of(path) == part):
        for line, name in imports(path):
            if is_under(name, "megatron_medx"):
                other = name.split(".")[1]
                fine = other == part or (other != "cli" if allowed is None else other in allowed)
                wrong += [] if fine else [f"{name_of(path)}:{line}: {part} imports {name}"]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("part", NEVER)
def test_what_a_part_never_imports(part):
    wrong = [
        f"{name_of(path)}:{line}: {part} imports {name}"
        for path in MODULES
        if part_of(path) == part
        for line, name in imports(path)
        if any(is_under(name, owner) for owner in NEVER[part])
    ]
    assert not wrong, "\n".join(wrong)


def test_models_know_no_ranks_and_no_environment():
    wrong = []
    for path in (path for path in MODULES if part_of(path) == "models"):
        for node in ast.walk(tree(path)):
            name = dotted(node) if isinstance(node, ast.Attribute | ast.Name) else ""
            first, last = name.split(".")[0], name.split(".")[-1]
            if is_under(name, "torch.distributed") or first in ("dist", "mpu", "parallel_state") or last == "environ":
                wrong.append(f"{name_of(path)}:{node.lineno}: {name}")
    assert not wrong, "\n".join(wrong)


def test_process_groups_are_made_in_parallel_alone():
    wrong = [
        f"{name_of(path)}:{node.lineno}: {dotted(node.func)}"
        for path in MODULES
        if part_of(path) != "parallel"
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call) and dotted(node.func).split(".")[-1] in MAKES_GROUPS
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", MODULES + PROGRAMS, ids=name_of)
def test_files_and_functions_are_short(path):
    num_lines = len(path.read_text(encoding="utf-8").splitlines())
    assert num_lines <= MAX_FILE_LINES, f"{num_lines} lines, at most {MAX_FILE_LINES}"
    long = {
        f"{node.name} (line {node.lineno})": length
        for node in functions(path)
        if (length := node.end_lineno - node.lineno + 1) > MAX_FUNCTION_LINES
    }
    assert not long, f"more than {MAX_FUNCTION_LINES} lines: {long}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_modules_classes_and_functions_are_documented(path):
    module = tree(path)
    if not module.body:
        return  # an empty __init__.py
    silent = [] if ast.get_docstring(module) else ["the module"]
    for node in module.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            silent += [] if ast.get_docstring(node) else [f"{node.name} (line {node.lineno})"]
    assert not silent, f"without a docstring: {', '.join(silent)}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_the_package_prints_nothing(path):
    calls = [
        node.lineno for node in ast.walk(tree(path)) if isinstance(node, ast.Call) and dotted(node.func) == "print"
    ]
    assert not calls, (
        f"print in lines {[node.lineno for node in calls]}: answers go through terminal.py, logs through logging"
    )


def test_no_file_is_called_utils():
    names = {"utils", "util", "helper", "helpers", "common", "misc"}
    assert not [name_of(path) for path in MODULES + PROGRAMS if path.stem in names or path.parent.name in names]
