"""Which constants of the engines' rules could change without any test noticing?

python tests/benchmarks/mutate.py [--module vllm]... [--line 120]... [--workers 2] [--list]

Each number of a module becomes one higher, then one lower, and each True or False the other, one at a time, in a copy
of the package and its tests, and the module's own tests run there. A mutant is killed when they fail (or run far longer
than without it), and survives when they pass. A survivor that cannot change any answer stands in
equivalent_mutants.toml with the reason; the script ends with 1 where another one survives, or where an entry of that
file is killed or matches nothing. Needs a system that forks: every mutant gets a process that has the test tools loaded
already.
"""

# ruff: noqa: T201 - a script that prints its table
from __future__ import annotations

import argparse
import ast
import compileall
import importlib
import importlib.util
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
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

# The file that kills most comes first: pytest stops at the first failure.
TESTS: dict[str, tuple[str, ...]] = {
    "engines/ideal.py": (
        "tests/property/test_ideal_laws.py",
        "tests/conformance/test_published_models.py",
        *ANY_ENGINE,
    ),
    "engines/llama_cpp.py": (
        "tests/conformance/test_llama_cpp.py",
        "tests/property/test_llama_cpp_laws.py",
        "tests/conformance/test_gguf_metadata.py",
        *ANY_ENGINE,
    ),
    "engines/ollama.py": ("tests/conformance/test_ollama.py", *ANY_ENGINE),
    "engines/vllm.py": ("tests/conformance/test_vllm.py", "tests/conformance/test_field_logs.py", *ANY_ENGINE),
    "engines/sglang.py": ("tests/conformance/test_sglang.py", "tests/property/test_sglang_laws.py", *ANY_ENGINE),
    "engines/tensorrt_llm.py": ("tests/conformance/test_tensorrt_llm.py", *ANY_ENGINE),
    "engines/transformers.py": (
        "tests/conformance/test_transformers.py",
        "tests/property/test_transformers_chunks.py",
        *ANY_ENGINE,
    ),
    "engines/mlx_lm.py": ("tests/conformance/test_mlx_lm.py", "tests/property/test_mlx_lm_growth.py", *ANY_ENGINE),
    "dtypes.py": (
        "tests/unit/test_dtypes.py",
        "tests/unit/test_weights.py",
        "tests/conformance/test_llama_cpp.py",
        "tests/conformance/test_vllm.py",
    ),
    "layout.py": ("tests/unit/test_layout.py", "tests/unit/test_variants.py"),
    "workload.py": ("tests/unit/test_weights.py", "tests/conformance/test_vllm.py", "tests/unit/test_refusals.py"),
    "weights.py": (
        "tests/unit/test_weights.py",
        "tests/unit/test_weights_steps.py",
        "tests/conformance/test_published_models.py",
    ),
}


@dataclass(frozen=True)
class Mutant:
    """The constant at `index` of a module's constants with another value; index None is the module as it is."""

    module: str
    index: int | None
    value: int | float | bool = 0
    line: int = 0
    change: str = ""
    source: str = ""

    @property
    def words(self) -> tuple[str, str]:
        """What names the mutant while other lines come and go; two constants of one line may share it."""
        return self.source, self.change

    def __str__(self) -> str:
        return f"    {self.line:4}  {self.change:16}  {self.source}"


def constants(tree: ast.AST) -> Iterator[ast.Constant]:
    """Every number, True and False of the code, always in the same order.

    Left out is what says how the code is written, not what it computes: arguments of decorators and `strict=`.
    """
    skipped: set[int] = set()
    for node in ast.walk(tree):
        for decorator in getattr(node, "decorator_list", []):
            skipped.update(id(inner) for inner in ast.walk(decorator))
        if isinstance(node, ast.keyword) and node.arg == "strict":
            skipped.add(id(node.value))
        if isinstance(node, ast.Constant) and type(node.value) in (int, float, bool) and id(node) not in skipped:
            yield node


def others(value: Any) -> list[Any]:
    """The other truth value, or the numbers one higher and one lower."""
    return [not value] if isinstance(value, bool) else [value + 1, value - 1]


def mutants(module: str) -> list[Mutant]:
    """All mutants of a module, by line."""
    text = (ROOT / "src/kvcalc" / module).read_text(encoding="utf-8")
    lines = text.splitlines()
    found = [
        Mutant(module, index, other, node.lineno, f"{node.value} -> {other}", lines[node.lineno - 1].strip())
        for index, node in enumerate(constants(ast.parse(text)))
        for other in others(node.value)
    ]
    return sorted(found, key=lambda mutant: mutant.line)


def mutated(text: str, mutant: Mutant) -> str:
    """The code with the mutant's constant changed."""
    tree = ast.parse(text)
    for at, node in enumerate(constants(tree)):
        if at == mutant.index:
            node.value = mutant.value
    return ast.unparse(tree)


def tests_pass(copy: Path, module: str, seconds: int) -> bool:
    """Whether a module's tests, and its own examples, pass against a copy of the package within some seconds."""
    child = os.fork()
    if child == 0:
        _run_tests(copy, module, seconds)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code not in (0, 1, 2, -signal.SIGALRM):  # pytest: 1 a failure, 2 a file that cannot be imported
        raise RuntimeError(f"the tests of {module} did not run: exit status {code}")
    return code == 0


def _run_tests(copy: Path, module: str, seconds: int) -> None:
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
    package = copy / "src"
    os.environ["PYTHONPATH"] = str(package)
    sys.path.insert(0, str(package))
    os.chdir(copy)
    options = ["-x", "-p", "no:cacheprovider", f"--rootdir={copy}", "-c", "pyproject.toml"]
    options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # the tools are loaded, on purpose
    code = 4
    try:
        code = int(pytest.main([*options, *TESTS[module], f"src/kvcalc/{module}"]))
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
    for module in TESTS:
        Path(importlib.util.cache_from_source(str(_copy / "src/kvcalc" / module))).unlink()
    sys.dont_write_bytecode = True
    for tool in ("pytest", "hypothesis", "hypothesis.strategies", "pydantic", "typer.testing", "rich.table"):
        importlib.import_module(tool)


def survives(mutant: Mutant, seconds: int) -> bool:
    """Whether the tests of a mutant's module pass in spite of it."""
    path = _copy / "src/kvcalc" / mutant.module
    text = path.read_text(encoding="utf-8")
    try:
        path.write_text(mutated(text, mutant), encoding="utf-8")
        return tests_pass(_copy, mutant.module, seconds)
    finally:
        path.write_text(text, encoding="utf-8")


def equivalents(module: str) -> Counter[tuple[str, str]]:
    """The mutants that cannot be noticed: (line of code, change), and how many constants of such a line that means."""
    listed = tomllib.loads(EQUIVALENTS.read_text(encoding="utf-8"))["equivalent"]
    return Counter(
        (entry["line"], change) for entry in listed if entry["module"] == module for change in entry["changes"]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = {module.removesuffix(".py").removeprefix("engines/"): module for module in TESTS}
    parser.add_argument("--module", action="append", choices=names, help="only this one; may be repeated")
    parser.add_argument("--line", action="append", type=int, help="only constants on this line; may be repeated")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--list", action="store_true", help="list the mutants and their tests, run nothing")
    options = parser.parse_args()
    chosen = [names[name] for name in options.module or names]
    if options.list:
        for module in chosen:
            print(module, *TESTS[module], *map(str, mutants(module)), sep="\n")
        return
    as_expected = True
    with tempfile.TemporaryDirectory() as folder:
        context = multiprocessing.get_context("fork")
        with context.Pool(options.workers, _start_worker, (folder,)) as pool:
            for module in chosen:
                as_expected &= run(pool, module, options.line)
    raise SystemExit(0 if as_expected else 1)


def run(pool: Any, module: str, lines: list[int] | None) -> bool:
    """Print what survives in a module; whether that is what equivalent_mutants.toml says."""
    start = time.perf_counter()
    if not pool.apply(survives, (Mutant(module, None), 600)):
        raise SystemExit(f"the tests of {module} fail without a mutant")
    seconds = 30 + 3 * round(time.perf_counter() - start)
    found = [mutant for mutant in mutants(module) if not lines or mutant.line in lines]
    listed, alive = equivalents(module), Counter[tuple[str, str]]()
    for mutant, lives in zip(found, pool.imap(partial(survives, seconds=seconds), found), strict=True):
        if lives:
            alive[mutant.words] += 1
            if alive[mutant.words] > listed[mutant.words]:
                print(mutant, flush=True)
    unlisted, stale = (alive - listed).total(), listed - alive
    for source, change in [] if lines else stale.elements():
        print(f"    listed as equivalent, but killed or not there: {change}  {source}")
    took, equivalent = round(time.perf_counter() - start), alive.total() - unlisted
    killed = len(found) - alive.total()
    print(
        f"{module:24} {len(found)} mutants, {killed} killed, {equivalent} equivalent, {unlisted} survive, {took} s",
        flush=True,
    )
    return not unlisted and (bool(lines) or not stale)


if __name__ == "__main__":
    main()
