"""Dependencies between the rooms point one way, and folders keep the habits of the layout."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# From left to right: a room imports from rooms of earlier groups, and not from its siblings.
GROUPS = [
    ["fedjax_kernels"],
    ["core"],
    [
        "data", "models", "training", "privacy", "he", "secagg", "ledger", "attacks", "defences",
        "selection",
    ],
    ["algorithms"],
    ["runtime"],
    ["widgets"],
]  # fmt: skip
RANK = {room: rank for rank, rooms in enumerate(GROUPS) for room in rooms}
CATCH_ALL = {"utils", "util", "helpers", "helper", "common", "misc"}


def python_files(root: Path) -> list[Path]:
    """The Python files of both source roots."""
    return sorted([*root.glob("fedjax_secure/**/*.py"), *root.glob("kernels/**/*.py")])


def module_parts(path: Path, root: Path) -> tuple[str, ...]:
    """A file's place in the import system, as its package and module names."""
    parts = path.relative_to(root).with_suffix("").parts
    parts = parts[1:] if parts[0] == "kernels" else parts
    return parts[:-1] if parts[-1] == "__init__" else parts


def room_of(parts: tuple[str, ...], root: Path) -> str | None:
    """The room of a dotted name: None for the top package, and for other people's packages."""
    if parts[:1] == ("fedjax_kernels",):
        return "fedjax_kernels"
    if parts[:1] != ("fedjax_secure",) or len(parts) == 1:
        return None
    if parts[1] == "__version__":
        return None  # known before any room is
    # `from fedjax_secure import clip` takes a name that the top package exports: that is above all.
    inside = root / "fedjax_secure" / parts[1]
    return parts[1] if inside.is_dir() or inside.with_suffix(".py").is_file() else "fedjax_secure"


def imported(path: Path, root: Path) -> list[tuple[int, tuple[str, ...]]]:
    """Every import of a file as (line, absolute dotted name), those inside functions too."""
    parts = module_parts(path, root)
    package = parts if path.name == "__init__.py" else parts[:-1]
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, tuple(alias.name.split("."))) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            base += tuple(node.module.split(".")) if node.module else ()
            found += [(node.lineno, (*base, alias.name)) for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            name = node.args[0] if node.args else None
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                found.append((node.lineno, tuple(name.value.split("."))))
    return found


def direction_faults(root: Path) -> list[str]:
    """Imports that point the wrong way, and rooms that the layout does not know."""
    faults = []
    for path in python_files(root):
        here = module_parts(path, root)
        room = room_of(here, root)
        if room is None:
            continue  # fedjax_secure/__init__.py exports from every room
        where = path.relative_to(root)
        if room not in RANK:
            faults.append(f"{where}: the layout knows no room `{room}`")
            continue
        for line, name in imported(path, root):
            if name[0] == "fedjax_secure" and len(name) == 1:
                faults.append(f"{where}:{line}: {room} imports the top package")
                continue
            other = room_of(name, root)
            if other is None or other == room:
                continue
            if RANK.get(other, len(GROUPS)) >= RANK[room]:
                faults.append(f"{where}:{line}: {room} imports {other}")
    return faults


def habit_faults(root: Path) -> list[str]:
    """Catch-all names, `__init__` files that do more than export, too many files in a folder."""
    faults = []
    for path in python_files(root):
        where = path.relative_to(root)
        if CATCH_ALL & {*where.with_suffix("").parts, *path.stem.split("_")}:
            faults.append(f"{where}: a catch-all name; say what is in it")
        if path.name == "__init__.py":
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                top = path.parent == root / "fedjax_secure"
                if not (is_export(node) or (top and is_lazy_export(node))):
                    faults.append(f"{where}:{node.lineno}: an __init__ exports only")
    for folder in sorted({path.parent for path in python_files(root)}):
        count = sum(1 for path in folder.glob("*.py") if path.name != "__init__.py")
        if count > 9:
            faults.append(f"{folder.relative_to(root)}: {count} files, at most 9")
    if (root / "kernels" / "__init__.py").exists():
        faults.append("kernels/__init__.py: the name `kernels` belongs to another package")
    return faults


def is_export(node: ast.stmt) -> bool:
    """A docstring, an import, or the assignment of a dunder such as `__all__`."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        return True
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    if isinstance(node, ast.Assign):
        return all(ast.unparse(target) in {"__all__", "__version__"} for target in node.targets)
    return False


def is_lazy_export(node: ast.stmt) -> bool:
    """What the top package needs to export rooms when they are first used, and nothing more.

    Its one call claims the CPU devices, which is possible only before JAX starts.
    """
    if isinstance(node, ast.FunctionDef):
        return node.name in {"__getattr__", "__dir__"}
    if isinstance(node, ast.Assign):
        names = [ast.unparse(target) for target in node.targets]
        return all(name.startswith("_") for name in names) and not any(
            isinstance(inner, ast.Call) for inner in ast.walk(node.value)
        )
    return isinstance(node, ast.Expr) and ast.unparse(node) == "use_all_cores()"


def test_dependencies_point_one_way():
    assert python_files(ROOT), "no source files found: the check would pass on nothing"
    assert direction_faults(ROOT) == []


def test_habits_of_the_layout():
    assert habit_faults(ROOT) == []


def test_tests_have_no_packages_and_unique_names():
    files = ROOT.glob("tests/**/*.py")
    names = [path.name for path in files if path.name != "conftest.py"]
    assert "test_layout.py" in names
    assert "__init__.py" not in names
    assert sorted(names) == sorted(set(names))


@pytest.fixture
def tree(tmp_path):
    """A small tree of the same form, without a fault."""
    files = {
        "fedjax_secure/__init__.py": '"""Top."""\nfrom . import core, he\n__all__ = ["core"]\n',
        "fedjax_secure/core/__init__.py": '"""Core."""\nfrom .spec import Spec\n',
        "fedjax_secure/core/spec.py": "import numpy\nclass Spec: ...\n",
        "fedjax_secure/privacy/clip.py": "from ..core import Spec\nimport fedjax_kernels.clip\n",
        "fedjax_secure/he/encrypt.py": "from fedjax_secure.core import Spec\nfrom . import keys\n",
        "fedjax_secure/he/keys.py": "from fedjax_secure import __version__\n",
        "fedjax_secure/runtime/run.py": "from ..algorithms import fed_avg\nfrom .. import he\n",
        "fedjax_secure/algorithms/__init__.py": "from .fed_avg import fed_avg\n",
        "fedjax_secure/algorithms/fed_avg.py": "def fed_avg(): ...\n",
        "kernels/fedjax_kernels/clip/api.py": "import jax\nfrom . import xla\n",
        "kernels/fedjax_kernels/clip/xla.py": "import jax\n",
    }
    for name, text in files.items():
        write(tmp_path, name, text)
    return tmp_path


def write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_a_tree_without_faults_passes(tree):
    assert direction_faults(tree) == []
    assert habit_faults(tree) == []


@pytest.mark.parametrize(
    ("file", "text", "fault"),
    [
        ("core/a.py", "from ..privacy import clip", "core imports privacy"),
        ("core/a.py", "import fedjax_secure.he.keys", "core imports he"),
        ("core/a.py", "def f():\n    from fedjax_secure import privacy", "core imports privacy"),
        ("he/a.py", "from ..privacy.clip import clip", "he imports privacy"),
        ("he/a.py", "from fedjax_secure import algorithms", "he imports algorithms"),
        ("algorithms/a.py", "from fedjax_secure.runtime import run", "algorithms imports runtime"),
        ("he/a.py", "import fedjax_secure", "he imports the top package"),
        ("he/a.py", "from fedjax_secure import Spec", "he imports fedjax_secure"),
        (
            "he/a.py",
            "import importlib\nimportlib.import_module('fedjax_secure.runtime.run')",
            "he imports runtime",
        ),
        ("shed/a.py", "import os", "the layout knows no room `shed`"),
    ],
)
def test_an_import_the_wrong_way_is_caught(tree, file, text, fault):
    write(tree, f"fedjax_secure/{file}", text)
    assert [found.split(": ", 1)[1] for found in direction_faults(tree)] == [fault]


def test_a_kernel_that_knows_the_toolkit_is_caught(tree):
    write(tree, "kernels/fedjax_kernels/clip/a.py", "from fedjax_secure.core import errors")
    assert direction_faults(tree) == [
        "kernels/fedjax_kernels/clip/a.py:1: fedjax_kernels imports core"
    ]


@pytest.mark.parametrize(
    ("file", "text", "fault"),
    [
        ("fedjax_secure/he/utils.py", "", "a catch-all name"),
        ("fedjax_secure/he/key_utils.py", "", "a catch-all name"),
        ("kernels/fedjax_kernels/common/api.py", "", "a catch-all name"),
        ("fedjax_secure/he/__init__.py", "def encrypt(): ...", "an __init__ exports only"),
        ("fedjax_secure/he/__init__.py", "import os\nos.umask(0)", "an __init__ exports only"),
        ("fedjax_secure/__init__.py", "def encrypt(): ...", "an __init__ exports only"),
        ("fedjax_secure/__init__.py", "_keys = make()", "an __init__ exports only"),
        ("fedjax_secure/he/__init__.py", "def __getattr__(name): ...", "an __init__ exports only"),
        ("kernels/__init__.py", "", "belongs to another package"),
    ],
)
def test_a_bad_habit_is_caught(tree, file, text, fault):
    write(tree, file, text)
    faults = habit_faults(tree)
    assert len(faults) == 1 and fault in faults[0]


def test_a_crowded_folder_is_caught(tree):
    for index in range(10):
        write(tree, f"fedjax_secure/data/part{index}.py", "")
    assert habit_faults(tree) == ["fedjax_secure/data: 10 files, at most 9"]
