"""Imports run one way: sources -> architecture -> engines -> footprint -> report, and no module looks back."""

import ast
from functools import cache
from pathlib import Path

import kvcalc
from kvcalc.cli.app import COMMANDS

PACKAGE = Path(kvcalc.__file__).parent
#: What a module may import of ours, by the first part of its path; a package may import itself.
MAY_IMPORT = {
    "names": set(),
    "errors": {"names"},
    "units": {"errors"},
    "invalid": {"errors"},
    "dtypes": {"errors", "units"},
    "layout": {"errors", "units"},
    "quantization": {"errors", "units", "dtypes"},
    "architecture": {"errors", "units", "dtypes", "layout", "quantization"},
    "relayout": {"errors", "layout", "architecture"},
    "derivation": {"units"},
    "device": {"units"},
    "widths": {"architecture"},
    "gguf_mixes": {"dtypes", "architecture", "quantization"},
    "weight_formats": {"errors", "dtypes", "quantization", "gguf_mixes"},
    "weights": {"errors", "units", "dtypes", "architecture", "quantization", "weight_formats"},
}
FOUNDATIONS = {*MAY_IMPORT}
MAY_IMPORT |= {
    "engines": FOUNDATIONS,
    "setup": FOUNDATIONS | {"engines", "sources"},
    "footprints": FOUNDATIONS | {"engines", "setup"},
    "fitting": FOUNDATIONS | {"engines", "setup", "sources"},
    "growth": FOUNDATIONS | {"engines", "setup", "fitting"},
    "levers": FOUNDATIONS | {"engines", "setup", "fitting"},
    "users": FOUNDATIONS | {"engines", "setup", "fitting"},
    "beside": FOUNDATIONS | {"engines", "setup", "fitting"},
    "alternatives": FOUNDATIONS | {"engines", "setup", "fitting"},
    "deciding": FOUNDATIONS | {"engines", "setup", "fitting", "levers", "users", "beside", "alternatives", "sources"},
    "sources": FOUNDATIONS,
    "page": FOUNDATIONS | {"alternatives", "engines", "fitting", "report", "serving", "setup", "sources"},
    "budgets": FOUNDATIONS | {"invalid", "names", "engines", "setup", "footprints", "fitting", "levers", "sources"},
}


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports_of(path: Path) -> set[str]:
    """The modules of ours that a file imports when it runs, by the first part of their path.

    An engine's plan is annotated with the setup that holds the engine: what only the type checker reads is no import.
    """
    names = set()
    tree = tree_of(path)
    for_types = {
        inner
        for node in tree.body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in for_types:
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("kvcalc."):
            names.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            names |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("kvcalc.")}
    return names


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_no_module_imports_against_the_direction():
    against = {
        f"{path.relative_to(PACKAGE)} imports {name}"
        for path in PACKAGE.rglob("*.py")
        if (room := room_of(path)) in MAY_IMPORT
        for name in imports_of(path) - MAY_IMPORT[room] - {room}
    }
    assert against == set()


def test_only_the_command_line_imports_the_command_line():
    assert {room_of(path) for path in PACKAGE.rglob("*.py") if "cli" in imports_of(path)} <= {"cli", "__main__"}


def test_sources_know_no_engine_and_engines_know_no_source():
    for room, stranger in (("sources", "engines"), ("engines", "sources")):
        assert not [path for path in (PACKAGE / room).rglob("*.py") if stranger in imports_of(path)]


def test_only_the_hub_reader_can_open_sockets():
    networks = {"socket", "ssl", "urllib", "http", "huggingface_hub", "requests", "httpx"}
    for path in PACKAGE.rglob("*.py"):
        if path.name == "hub.py":
            continue
        for node in ast.walk(tree_of(path)):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert networks.isdisjoint(module.split(".")[0] for module in modules), path


#: What a help page is made of; everything else is loaded by an answer.
FOR_HELP = {"cli", "errors", "layout", "names", "report", "units"}


def test_a_help_page_loads_no_engine_source_or_log():
    for name in COMMANDS:
        path = PACKAGE / "cli" / f"{name}.py"
        loaded = [node for node in tree_of(path).body if isinstance(node, ast.ImportFrom)]
        modules = [node.module for node in loaded if node.module and node.module.startswith("kvcalc.")]
        assert {module.split(".")[1] for module in modules} <= FOR_HELP, name
        tables = [alias.name for node in loaded for alias in node.names if alias.name.endswith(("_tables", "_words"))]
        assert not tables, name
