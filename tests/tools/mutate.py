"""What of the code could be another number, comparison or operator without any test noticing?

python tests/tools/mutate.py [--module vllm]... [--line 120]... [--sample 100]

Each number of a module becomes one higher, then one lower, and each True or False the other; each comparison its
neighbour (< and <=, == and !=), each +, -, *, // and % another operation, each `and` an `or`, each `min` a `max` and
the other way round, and each `not` goes: one at a time, in a copy of the package and its tests. There those tests run
that run its line; the whole suite runs once before to say which. A mutant is killed when they fail (or run far longer
than without it), and survives when they pass. A survivor that cannot change any answer stands in
equivalent_mutants.toml with the reason; the script ends with 1 where another one survives, or where an entry of that
file is killed or matches nothing.
With ``--sample`` so many mutants of each module are drawn, by ``--seed``. Needs a system that forks: every
mutant gets a process that has the test tools loaded already.
"""

# ruff: noqa: S311, T201 - a script that prints its table
from __future__ import annotations

import argparse
import ast
import compileall
import functools
import importlib
import importlib.util
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from itertools import accumulate
from pathlib import Path, PurePosixPath
from random import Random
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
EQUIVALENTS = Path(__file__).with_name("equivalent_mutants.toml")
#: In place of a line's changes: none of them is made.
ANY = "*"
PACKAGE = ROOT / "src/kvcalc"


#: Every module by its path in the package.
MODULES = [path.relative_to(PACKAGE).as_posix() for path in sorted(PACKAGE.rglob("*.py")) if path.name != "__main__.py"]


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
    """All mutants of a module, by line, but those of lines that are no rule."""
    text = (PACKAGE / module).read_text(encoding="utf-8")
    left_out = {entry["line"] for entry in entries(module) if ANY in entry["changes"]}
    lines = text.splitlines()
    found = [
        Mutant(module, index, each.kind, each.line, each.words, lines[each.line - 1].strip())
        for index, each in enumerate(changes(ast.parse(text)))
    ]
    return sorted((each for each in found if each.source not in left_out), key=lambda mutant: mutant.line)


def mutated(text: str, mutant: Mutant) -> str:
    """The code with the mutant's change made."""
    tree = ast.parse(text)
    for index, change in enumerate(changes(tree)):
        if index == mutant.index:
            change.make()
            break
    return ast.unparse(ast.fix_missing_locations(tree))


class Tracer:
    """A plugin of pytest that writes down which test functions run each line of the package, and their seconds.

    What is remembered from one test to the next is forgotten before each function, so that every test runs the lines
    that its answers come from. A file whose collection runs a line has it as a whole.
    """

    def __init__(self, source: Path, table: Path) -> None:
        import coverage

        self.source, self.table = source, table
        self.coverage = coverage.Coverage(data_file=None, source=[str(source)], config_file=False)
        self.coverage.start()
        self.seconds: Counter[str] = Counter()
        self.failed: set[str] = set()
        self.now = ""

    def pytest_collectstart(self, collector: Any) -> None:
        self._switch(collector.nodeid.partition("::")[0])

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._switch(nodeid.partition("[")[0])

    def pytest_runtest_logreport(self, report: Any) -> None:
        name = report.nodeid.partition("[")[0]
        self.seconds[name] += report.duration
        if report.failed:
            self.failed.add(name)

    def _switch(self, name: str) -> None:
        if name != self.now:
            self.now = name
            self.coverage.switch_context(name)
            for module in [each for each in sys.modules.values() if getattr(each, "__file__", None)]:
                if str(module.__file__).startswith(str(_copy)):
                    for value in vars(module).values():
                        if isinstance(value, functools._lru_cache_wrapper):
                            value.cache_clear()

    def pytest_sessionfinish(self) -> None:
        self.coverage.stop()
        data = self.coverage.get_data()
        lines = {
            Path(file).relative_to(self.source).as_posix(): {
                line: sorted({*tests} - {""} - self.failed) for line, tests in data.contexts_by_lineno(file).items()
            }
            for file in data.measured_files()
        }
        self.table.write_text(json.dumps({"lines": lines, "seconds": self.seconds, "failed": sorted(self.failed)}))


class Traced:
    """Which tests run which lines of the package."""

    def __init__(self, text: str) -> None:
        told = json.loads(text)
        self.lines: dict[str, dict[int, list[str]]] = {
            module: {int(line): tests for line, tests in lines.items()} for module, lines in told["lines"].items()
        }
        self.seconds = Counter[str](told["seconds"])
        for name, took in told["seconds"].items():  # a file takes as long as its tests
            self.seconds[name.partition("::")[0]] += took
        self.failed: list[str] = told["failed"]

    def tests_of(self, module: str, line: int) -> list[str]:
        """The tests that run the statement of a line, the quickest first.

        What runs as the module is imported is seen by every test that runs a function of the module, of one that
        imports it, or of the rooms that it stands in, which may import it by name.
        """
        statements, in_functions = shape(module)
        if line in in_functions:
            tests = self.running(module, min((each for each in statements if line in each), key=len))
        else:
            tests = {
                test
                for name in [module, *importers(module), *rooms(module)]
                for test in self.running(name, shape(name)[1])
            }
        files = {test for test in tests if "::" not in test}
        alone = {test for test in tests if test.partition("::")[0] not in files}
        return sorted(files | alone, key=self.seconds.__getitem__)

    def within(self, seconds: int | None, tests: list[str]) -> list[str]:
        """The first of some tests, as many as so many seconds allow."""
        if seconds is None:
            return tests
        total = accumulate(self.seconds[test] for test in tests)
        return [test for test, took in zip(tests, total, strict=True) if took <= seconds]

    def running(self, module: str, lines: Iterable[int]) -> set[str]:
        """The tests that run any of these lines."""
        of_line = self.lines.get(module, {})
        return {test for line in lines for test in of_line.get(line, ())}


@cache
def shape(module: str) -> tuple[list[range], set[int]]:
    """The lines of each statement of a module, and the lines that run when one of its functions does."""
    nodes = list(ast.walk(ast.parse((PACKAGE / module).read_text(encoding="utf-8"))))

    def lines_of(node: ast.stmt) -> range:
        return range(node.lineno, (node.end_lineno or node.lineno) + 1)

    bodies = [lines_of(each) for node in nodes if isinstance(node, ast.FunctionDef) for each in node.body]
    return [lines_of(node) for node in nodes if isinstance(node, ast.stmt)], {line for body in bodies for line in body}


@cache
def importers(module: str) -> list[str]:
    """The modules that import one, or something of it."""
    name = "kvcalc." + module.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    room, _, last = name.rpartition(".")
    wanted = re.compile(rf"from {name} import |from {room} import [^\n]*\b{last}\b")
    return [each for each in MODULES if wanted.search((PACKAGE / each).read_text(encoding="utf-8"))]


def rooms(module: str) -> list[str]:
    """The packages that a module is in, by their own modules: a/__init__.py of a/b.py."""
    return [f"{folder}/__init__.py" for folder in map(str, PurePosixPath(module).parents) if folder != "."]


def trace() -> str:
    """Run the whole suite once in this worker's copy, and write down which tests run which lines."""
    table = _copy / "lines.json"
    passed(["tests", "src"], 3600, trace=(_copy / "src/kvcalc", table))
    text = table.read_text()
    if not Traced(text).seconds:
        raise RuntimeError("the suite ran no test")
    return text


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
    options = ["-p", "no:cacheprovider", f"--rootdir={_copy}", "-c", "pyproject.toml", f"--basetemp={_copy}/temporary"]
    options += [] if trace else ["-x"]
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
    asked = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(asked, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines():
        (_copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, _copy / name)
    compileall.compile_dir(_copy / "src", quiet=2)
    # a mutant written within the same second, as long as the last, would be taken for it from the cache
    for module in MODULES:
        Path(importlib.util.cache_from_source(str(_copy / "src/kvcalc" / module))).unlink()
    sys.dont_write_bytecode = True
    for tool in ("pytest", "hypothesis", "hypothesis.strategies", "pydantic", "typer.testing", "rich.table"):
        importlib.import_module(tool)


def survives(mutant: Mutant, tests: list[str], seconds: int) -> bool:
    """Whether the tests that run a mutant's line pass in spite of it."""
    path = _copy / "src/kvcalc" / mutant.module
    text = path.read_text(encoding="utf-8")
    try:
        path.write_text(mutated(text, mutant), encoding="utf-8")
        return not tests or passed(tests, seconds)
    finally:
        path.write_text(text, encoding="utf-8")


def _survives(asked: tuple[Mutant, list[str], int]) -> bool:
    return survives(*asked)


def equivalents(module: str) -> Counter[tuple[str, str]]:
    """The mutants that cannot be noticed: (line of code, change), and how many constants of such a line that means."""
    return Counter((entry["line"], change) for entry in entries(module) for change in entry["changes"] if change != ANY)


def entries(module: str | None = None) -> list[dict[str, Any]]:
    """What equivalent_mutants.toml has on a module, or on all."""
    listed = tomllib.loads(EQUIVALENTS.read_text(encoding="utf-8"))["equivalent"]
    return [entry for entry in listed if module in (None, entry["module"])]


def unmatched() -> list[str]:
    """The entries of equivalent_mutants.toml whose line is in their module no more."""
    return [
        f"    {entry['module']}: {entry['line']}" for entry in entries() if not _stands(entry["module"], entry["line"])
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
    parser.add_argument("--traced", type=Path, help="keep here which tests run which lines, and read it from here")
    parser.add_argument("--quick", type=int, help="only the quickest of a mutant's tests, so many seconds of them")
    parser.add_argument("--list", action="store_true", help="list the mutants, run nothing")
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
                print(module, *map(str, found), sep="\n")
        return
    lost = unmatched()
    if lost:
        print("equivalent_mutants.toml names what is not there:", *lost, sep="\n")
    as_expected = not lost
    with tempfile.TemporaryDirectory() as folder:
        context = multiprocessing.get_context("fork")
        with context.Pool(options.workers, _start_worker, (folder,)) as pool:
            if options.traced is None or not options.traced.exists():
                text = pool.apply(trace)
                if options.traced is not None:
                    options.traced.write_text(text, encoding="utf-8")
            else:
                text = options.traced.read_text(encoding="utf-8")
            traced = Traced(text)
            if traced.failed:
                print("left out, as they fail without a mutant:", *traced.failed, sep="\n    ", flush=True)
            for module, found in by_module.items():
                if found:
                    as_expected &= run(pool, traced, module, found, whole, options.quick)
    raise SystemExit(0 if as_expected else 1)


def drawn(found: list[Mutant], count: int | None, seed: int) -> list[Mutant]:
    """So many mutants of a module in their order, or all."""
    if count is None or count >= len(found):
        return found
    return [found[at] for at in sorted(Random(seed).sample(range(len(found)), count))]


def run(pool: Any, traced: Traced, module: str, found: list[Mutant], whole: bool, quick: int | None) -> bool:
    """Print what survives of a module's mutants; whether that is what equivalent_mutants.toml says."""
    start = time.perf_counter()
    tests = [traced.within(quick, traced.tests_of(module, mutant.line)) for mutant in found]
    seconds = [30 + round(5 * sum(map(traced.seconds.__getitem__, each))) for each in tests]
    asked = pool.imap(_survives, zip(found, tests, seconds, strict=True))
    listed, alive = equivalents(module), Counter[tuple[str, str]]()
    for mutant, lives in zip(found, asked, strict=True):
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
