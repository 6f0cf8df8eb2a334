"""What of the code could be another number, comparison or operator without any test noticing?

python tests/tools/mutate.py [--module vllm]... [--line 120]... [--sample 100]

Each number of a module becomes one higher, then one lower, and each True or False the other; each comparison its
neighbour (< and <=, == and !=), each +, -, *, // and % another operation, each `and` an `or`, each `min` a `max` and
the other way round, and each `not` goes: one at a time, in a copy of the package and its tests, and the module's own
tests run there. A mutant is killed when they fail (or run far longer than without it), and survives when they pass. A
survivor that cannot change any answer stands in equivalent_mutants.toml with the reason; the script ends with 1 where
another one survives, or where an entry of that file is killed or matches nothing.
With ``--sample`` so many mutants of each module are drawn, by ``--seed``. Needs a system that forks: every
mutant gets a process that has the test tools loaded already.
"""

# ruff: noqa: S311, T201 - a script that prints its table
from __future__ import annotations

import argparse
import ast
import compileall
import importlib
import importlib.util
import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
EQUIVALENTS = Path(__file__).with_name("equivalent_mutants.toml")
ANY_ENGINE = (
    "tests/unit/test_engine_options.py",
    "tests/unit/test_explained.py",
    "tests/unit/test_refusals.py",
    "tests/property/test_engine_laws.py",
    "tests/property/test_capacity.py",
)

BUDGETS = ("tests/unit/test_budget.py", "tests/cli/test_check.py")
LOGS = (
    "tests/unit/test_logs.py",
    "tests/cli/test_audit.py",
    "tests/conformance/test_field_logs.py",
    "tests/unit/test_users.py",
)
CONFIGS = (
    "tests/conformance/test_quantised_checkpoints.py",
    "tests/unit/test_config_traps.py",
    "tests/unit/test_config_files.py",
    "tests/unit/test_families.py",
    "tests/unit/test_config_counts.py",
    "tests/unit/test_config_kinds.py",
    "tests/unit/test_stored_besides.py",
    "tests/unit/test_towers.py",
    "tests/conformance/test_published_models.py",
    "tests/conformance/test_working_memory.py",
    "tests/property/test_config_laws.py",
)
FITTING = (
    "tests/unit/test_rare_cases.py",
    "tests/unit/test_what_fits.py",
    "tests/property/test_capacity.py",
    "tests/cli/test_fit.py",
    "tests/unit/test_arguments.py",
)

WEIGHTS = (
    "tests/conformance/test_quantised_checkpoints.py",
    "tests/unit/test_weight_formats.py",
    "tests/unit/test_quantization.py",
    "tests/unit/test_declared_formats.py",
    "tests/unit/test_weights.py",
)

# Which tests hold a module: the first pattern that its path matches. The file that kills most comes first: pytest stops
# at the first failure.
PATTERNS: dict[str, tuple[str, ...]] = {
    "engines/ideal.py": (
        "tests/unit/test_rare_cases.py",
        "tests/property/test_ideal_laws.py",
        "tests/conformance/test_published_models.py",
        *ANY_ENGINE,
    ),
    "engines/llama_cpp/*.py": (
        "tests/conformance/test_llama_cpp.py",
        "tests/conformance/test_llama_cpp_compute.py",
        "tests/property/test_llama_cpp_laws.py",
        "tests/conformance/test_gguf_metadata.py",
        *ANY_ENGINE,
    ),
    "engines/ollama.py": ("tests/conformance/test_ollama.py", *ANY_ENGINE),
    "engines/vllm_*.py": ("tests/conformance/test_working_memory.py", *ANY_ENGINE),
    "engines/vllm/*.py": ("tests/conformance/test_vllm.py", "tests/conformance/test_field_logs.py", *ANY_ENGINE),
    "engines/sglang/*.py": ("tests/conformance/test_sglang.py", "tests/property/test_sglang_laws.py", *ANY_ENGINE),
    "engines/tensorrt_llm/*.py": ("tests/conformance/test_tensorrt_llm.py", *ANY_ENGINE),
    "engines/transformers_memory.py": ("tests/conformance/test_transformers_memory.py", *ANY_ENGINE),
    "engines/transformers/*.py": (
        "tests/conformance/test_transformers.py",
        "tests/property/test_transformers_chunks.py",
        *ANY_ENGINE,
    ),
    "engines/mlx_lm/*.py": ("tests/conformance/test_mlx_lm.py", "tests/property/test_mlx_lm_growth.py", *ANY_ENGINE),
    "engines/lmdeploy.py": ("tests/conformance/test_lmdeploy.py", *ANY_ENGINE),
    "engines/*.py": (
        *ANY_ENGINE,
        "tests/conformance/test_vllm.py",
        "tests/conformance/test_llama_cpp.py",
        "tests/unit/test_arguments.py",
        "tests/unit/test_what_fits.py",
    ),
    "dtypes.py": (
        "tests/unit/test_dtypes.py",
        "tests/unit/test_weights.py",
        "tests/conformance/test_llama_cpp.py",
        "tests/conformance/test_vllm.py",
    ),
    "layout.py": ("tests/unit/test_layout.py", "tests/unit/test_variants.py"),
    "weights.py": (
        "tests/unit/test_weights.py",
        "tests/unit/test_weights_steps.py",
        "tests/conformance/test_published_models.py",
    ),
    "weights_steps.py": ("tests/unit/test_weights_steps.py",),
    "weight_formats.py": WEIGHTS,
    "gguf_mixes.py": WEIGHTS,
    "quantization.py": WEIGHTS,
    "units.py": ("tests/unit/test_units.py", "tests/property/test_capacity.py", "tests/unit/test_arguments.py"),
    "fitting.py": (*FITTING, "tests/unit/test_users.py"),
    "users.py": ("tests/unit/test_users.py", "tests/property/test_users_laws.py", "tests/cli/test_fit.py"),
    "beside.py": ("tests/unit/test_beside.py", "tests/cli/test_fit.py"),
    "deciding.py": ("tests/cli/test_fit.py", "tests/unit/test_alternatives.py"),
    "levers.py": FITTING,
    "serving.py": ("tests/unit/test_alternatives.py", *FITTING),
    "alternatives.py": ("tests/unit/test_alternatives.py", *FITTING),
    "growth.py": ("tests/unit/test_growth.py", *FITTING),
    "setup.py": ("tests/unit/test_arguments.py", *ANY_ENGINE),
    "report/files.py": ("tests/cli/test_interruptions.py", "tests/cli/test_streams.py"),
    "budgets/*.py": BUDGETS,
    "logs/*.py": LOGS,
    "sources/gguf*.py": (
        "tests/unit/test_gguf.py",
        "tests/unit/test_gguf_model.py",
        "tests/property/test_hostile_headers.py",
        "tests/conformance/test_gguf_metadata.py",
    ),
    "sources/hub.py": ("tests/unit/test_hub.py",),
    "sources/safetensors.py": (
        "tests/unit/test_safetensors.py",
        "tests/unit/test_checkpoint.py",
        "tests/unit/test_hub.py",
    ),
    "sources/devices.py": ("tests/unit/test_devices.py", "tests/cli/test_fit.py"),
    "sources/quantization_config.py": WEIGHTS,
    "sources/resolve.py": ("tests/unit/test_names.py", "tests/cli/test_platforms.py", "tests/unit/test_checkpoint.py"),
    "sources/config/*.py": CONFIGS,
    "sources/*.py": (
        "tests/unit/test_files.py",
        "tests/unit/test_spec.py",
        "tests/unit/test_shipped.py",
        "tests/unit/test_checkpoint.py",
        "tests/unit/test_arguments.py",
        "tests/cli/test_presets.py",
        *CONFIGS,
    ),
}
PACKAGE = ROOT / "src/kvcalc"


def tests_of(module: str) -> tuple[str, ...]:
    """The test files that hold a module."""
    return next((tests for pattern, tests in PATTERNS.items() if fnmatch(module, pattern)), ())


#: Every module that tests are named for, by its path in the package.
MODULES = [module for path in sorted(PACKAGE.rglob("*.py")) if tests_of(module := path.relative_to(PACKAGE).as_posix())]


@dataclass(frozen=True)
class Mutant:
    """The change at `index` of all changes of a module."""

    module: str
    index: int
    kind: str
    line: int
    change: str
    source: str

    @property
    def words(self) -> tuple[str, str]:
        """What names the mutant while other lines come and go; two places of one line may share it."""
        return self.source, self.change

    def __str__(self) -> str:
        return f"    {self.module}:{self.line}  {self.change}  {self.source}"


@dataclass(frozen=True)
class Change:
    """A place of the code, what it becomes in words, and how."""

    kind: str
    line: int
    words: str
    make: Callable[[], None]


SWAPPED: dict[type[ast.AST], tuple[type[ast.AST], str]] = {
    ast.Lt: (ast.LtE, "< -> <="),
    ast.LtE: (ast.Lt, "<= -> <"),
    ast.Gt: (ast.GtE, "> -> >="),
    ast.GtE: (ast.Gt, ">= -> >"),
    ast.Eq: (ast.NotEq, "== -> !="),
    ast.NotEq: (ast.Eq, "!= -> =="),
    ast.Is: (ast.IsNot, "is -> is not"),
    ast.IsNot: (ast.Is, "is not -> is"),
    ast.In: (ast.NotIn, "in -> not in"),
    ast.NotIn: (ast.In, "not in -> in"),
    ast.Add: (ast.Sub, "+ -> -"),
    ast.Sub: (ast.Add, "- -> +"),
    ast.Mult: (ast.FloorDiv, "* -> //"),
    ast.FloorDiv: (ast.Mult, "// -> *"),
    ast.Mod: (ast.Mult, "% -> *"),
    ast.And: (ast.Or, "and -> or"),
    ast.Or: (ast.And, "or -> and"),
}


def changes(tree: ast.AST) -> Iterator[Change]:
    """Every change of the code, always in the same order.

    Left out is what says how the code is written, not what it computes: decorators, annotations, `strict=`.
    """
    skipped: set[int] = set()
    for node in ast.walk(tree):
        written = [getattr(node, "annotation", None), getattr(node, "returns", None)]
        for part in (*getattr(node, "decorator_list", []), *filter(None, written)):
            skipped.update(id(inner) for inner in ast.walk(part))
        if isinstance(node, ast.keyword) and node.arg == "strict":
            skipped.add(id(node.value))
    for parent in ast.walk(tree):
        for name, value in ast.iter_fields(parent):
            for at, node in enumerate(value if isinstance(value, list) else [value]):
                if isinstance(node, ast.expr) and id(node) not in skipped:
                    yield from _changes_of(parent, name, at if isinstance(value, list) else None, node)


def _changes_of(parent: ast.AST, name: str, at: int | None, node: ast.expr) -> Iterator[Change]:
    def put(other: ast.expr) -> None:
        if at is None:
            setattr(parent, name, other)
        else:
            getattr(parent, name)[at] = other

    match node:
        case ast.Constant(value=bool() | int() | float() as value):
            for other in [not value] if isinstance(value, bool) else [value + 1, value - 1]:
                yield Change("numbers", node.lineno, f"{value} -> {other}", partial(put, ast.Constant(other)))
        case ast.Compare(ops=ops):
            for position, operator in enumerate(ops):
                kind, words = SWAPPED[type(operator)]
                yield Change("operators", node.lineno, words, partial(ops.__setitem__, position, kind()))
        case ast.BinOp(op=operator) | ast.BoolOp(op=operator) if type(operator) in SWAPPED:
            kind, words = SWAPPED[type(operator)]
            yield Change("operators", node.lineno, words, partial(setattr, node, "op", kind()))
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield Change("operators", node.lineno, "not x -> x", partial(put, operand))
        case ast.Call(func=ast.Name(id="min" | "max" as called) as function):
            other = "max" if called == "min" else "min"
            yield Change("operators", node.lineno, f"{called} -> {other}", partial(setattr, function, "id", other))


def mutants(module: str) -> list[Mutant]:
    """All mutants of a module, by line."""
    text = (PACKAGE / module).read_text(encoding="utf-8")
    lines = text.splitlines()
    found = [
        Mutant(module, index, each.kind, each.line, each.words, lines[each.line - 1].strip())
        for index, each in enumerate(changes(ast.parse(text)))
    ]
    return sorted(found, key=lambda mutant: mutant.line)


def mutated(text: str, mutant: Mutant) -> str:
    """The code with the mutant's change made."""
    tree = ast.parse(text)
    for index, change in enumerate(changes(tree)):
        if index == mutant.index:
            change.make()
            break
    return ast.unparse(ast.fix_missing_locations(tree))


class Tracer:
    """A plugin of pytest that writes down which test functions run each line of a file."""

    def __init__(self, path: Path, table: Path) -> None:
        import coverage

        self.path, self.table = path, table
        self.coverage = coverage.Coverage(data_file=None, include=[str(path)], config_file=False)
        self.coverage.start()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.coverage.switch_context(nodeid.partition("[")[0])

    def pytest_sessionfinish(self) -> None:
        self.coverage.stop()
        contexts = self.coverage.get_data().contexts_by_lineno(str(self.path))
        self.table.write_text(json.dumps({line: sorted({*tests} - {""}) for line, tests in contexts.items()}))


def tests_by_line(module: str, seconds: int) -> dict[int, list[str]] | None:
    """The tests of a module that run each of its lines; None where one of them fails."""
    path, table = _copy / "src/kvcalc" / module, _copy / "lines.json"
    if not passed(all_tests(module), seconds, trace=(path, table)):
        return None
    return {int(line): tests for line, tests in json.loads(table.read_text()).items()}


def tests_of_line(text: str, line: int, by_line: dict[int, list[str]]) -> list[str]:
    """The tests that run the statement that a line belongs to."""
    statements = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.stmt))
    around = (range(node.lineno, (node.end_lineno or node.lineno) + 1) for node in statements)
    lines = min((each for each in around if line in each), key=len)
    return sorted({test for each in lines for test in by_line.get(each, ())})


def all_tests(module: str) -> list[str]:
    """A module's tests, and its own examples."""
    return [*(name for name in tests_of(module) if (ROOT / name).exists()), f"src/kvcalc/{module}"]


def passed(tests: list[str], seconds: int, trace: tuple[Path, Path] | None = None) -> bool:
    """Whether tests pass against the worker's copy of the package within some seconds."""
    child = os.fork()
    if child == 0:
        _run_tests(tests, seconds, trace)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code not in (0, 1, 2, -signal.SIGALRM):  # pytest: 1 a failure, 2 a file that cannot be imported
        raise RuntimeError(f"the tests did not run, exit status {code}: {' '.join(tests)}")
    return code == 0


def _run_tests(tests: list[str], seconds: int, trace: tuple[Path, Path] | None) -> None:
    signal.alarm(seconds)  # nobody handles it: the process ends
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    import hypothesis
    import pytest

    # the same examples for every mutant, none remembered from another one, no failure for a busy machine, and no search
    # for the simplest example of a failure
    hypothesis.settings.register_profile(
        "mutate",
        derandomize=True,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    hypothesis.settings.load_profile("mutate")
    package = _copy / "src"
    os.environ["PYTHONPATH"] = str(package)
    sys.path.insert(0, str(package))
    os.chdir(_copy)
    options = ["-x", "-p", "no:cacheprovider", f"--rootdir={_copy}", "-c", "pyproject.toml"]
    options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # the tools are loaded, on purpose
    code = 4
    try:
        code = int(pytest.main([*options, *tests], plugins=[Tracer(*trace)] if trace else []))
    finally:
        os._exit(code)  # 4 after an exception, which the parent reports


_copy = Path()  # each worker's own copy of the package and its tests


def _start_worker(folder: str) -> None:
    global _copy  # noqa: PLW0603 - a pool hands its workers nothing else
    _copy = Path(tempfile.mkdtemp(dir=folder))
    for name in ("src", "presets", "tests"):
        shutil.copytree(ROOT / name, _copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", _copy)
    compileall.compile_dir(_copy / "src", quiet=2)
    # a mutant written within the same second, as long as the last, would be taken for it from the cache
    for module in MODULES:
        Path(importlib.util.cache_from_source(str(_copy / "src/kvcalc" / module))).unlink()
    sys.dont_write_bytecode = True
    for tool in ("pytest", "hypothesis", "hypothesis.strategies", "pydantic", "typer.testing", "rich.table"):
        importlib.import_module(tool)


def survives(mutant: Mutant, by_line: dict[int, list[str]], seconds: int) -> bool:
    """Whether the tests of a mutant's module pass in spite of it; those that run its line come first."""
    path = _copy / "src/kvcalc" / mutant.module
    text = path.read_text(encoding="utf-8")
    first = tests_of_line(text, mutant.line, by_line)
    try:
        path.write_text(mutated(text, mutant), encoding="utf-8")
        return (not first or passed(first, seconds)) and passed(all_tests(mutant.module), seconds)
    finally:
        path.write_text(text, encoding="utf-8")


def equivalents(module: str) -> Counter[tuple[str, str]]:
    """The mutants that cannot be noticed: (line of code, change), and how many constants of such a line that means."""
    listed = tomllib.loads(EQUIVALENTS.read_text(encoding="utf-8"))["equivalent"]
    return Counter(
        (entry["line"], change) for entry in listed if entry["module"] == module for change in entry["changes"]
    )


def unmatched() -> list[str]:
    """The entries of equivalent_mutants.toml whose line is in their module no more."""
    listed = tomllib.loads(EQUIVALENTS.read_text(encoding="utf-8"))["equivalent"]
    return [
        f"    {entry['module']}: {entry['line']}" for entry in listed if not _stands(entry["module"], entry["line"])
    ]


def _stands(module: str, line: str) -> bool:
    path = PACKAGE / module
    return path.is_file() and line in map(str.strip, path.read_text(encoding="utf-8").splitlines())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = {module.removesuffix(".py").removeprefix("engines/"): module for module in MODULES}
    parser.add_argument("--module", action="append", choices=names, help="only this one; may be repeated")
    parser.add_argument("--line", action="append", type=int, help="only what stands on this line; may be repeated")
    parser.add_argument("--kind", choices=("numbers", "operators"), help="only these changes")
    parser.add_argument("--sample", type=int, help="only so many mutants of each module")
    parser.add_argument("--seed", type=int, default=1, help="of the sample")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--list", action="store_true", help="list the mutants and their tests, run nothing")
    options = parser.parse_args()
    chosen = [
        mutant
        for module in (names[name] for name in options.module or names)
        for mutant in mutants(module)
        if (not options.line or mutant.line in options.line) and options.kind in (None, mutant.kind)
    ]
    whole = options.sample is None and not options.line and options.kind is None
    by_module = {
        module: drawn([mutant for mutant in chosen if mutant.module == module], options.sample, options.seed)
        for module in MODULES
    }
    if options.list:
        for module, found in by_module.items():
            if found:
                print(module, *tests_of(module), *map(str, found), sep="\n")
        return
    lost = unmatched()
    if lost:
        print("equivalent_mutants.toml names what is not there:", *lost, sep="\n")
    as_expected = not lost
    with tempfile.TemporaryDirectory() as folder:
        context = multiprocessing.get_context("fork")
        with context.Pool(options.workers, _start_worker, (folder,)) as pool:
            for module, found in by_module.items():
                if found:
                    as_expected &= run(pool, module, found, whole)
    raise SystemExit(0 if as_expected else 1)


def drawn(found: list[Mutant], count: int | None, seed: int) -> list[Mutant]:
    """So many mutants of a module in their order, or all."""
    if count is None or count >= len(found):
        return found
    return [found[at] for at in sorted(Random(seed).sample(range(len(found)), count))]


def run(pool: Any, module: str, found: list[Mutant], whole: bool) -> bool:
    """Print what survives of a module's mutants; whether that is what equivalent_mutants.toml says."""
    start = time.perf_counter()
    by_line = pool.apply(tests_by_line, (module, 600))
    if by_line is None:
        raise SystemExit(f"the tests of {module} fail without a mutant")
    seconds = 30 + 3 * round(time.perf_counter() - start)
    listed, alive = equivalents(module), Counter[tuple[str, str]]()
    for mutant, lives in zip(found, pool.imap(partial(survives, by_line=by_line, seconds=seconds), found), strict=True):
        if lives:
            alive[mutant.words] += 1
            if alive[mutant.words] > listed[mutant.words]:
                print(mutant, flush=True)
    unlisted, stale = (alive - listed).total(), listed - alive
    for source, change in stale.elements() if whole else []:
        print(f"    listed as equivalent, but killed or not there: {change}  {source}")
    took, equivalent = round(time.perf_counter() - start), alive.total() - unlisted
    killed = len(found) - alive.total()
    print(
        f"{module:24} {len(found)} mutants, {killed} killed, {equivalent} equivalent, {unlisted} survive, {took} s",
        flush=True,
    )
    return not unlisted and (not whole or not stale)


if __name__ == "__main__":
    main()
