"""Wall time of whole commands, as ratios over what they must import; medians, the commands taking turns.

Every command has its bytecode, as pip leaves it: PYTHONDONTWRITEBYTECODE is not handed on, or a source tree would be
compiled at every start while what it imports is not.

python tests/tools/startup.py [RUNS]
"""

# ruff: noqa: T201 - a script that prints its table
from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time

IMPORTS = "import typer; from pydantic import BaseModel; from rich.console import Console; from rich.table import Table"
ONE_COMMAND = """
import typer
app = typer.Typer()
@app.command()
def main(name: str) -> None:
    \"\"\"Say hello.\"\"\"
app()
"""
PYTHON = sys.executable
KVCALC = [PYTHON, "-m", "kvcalc"]
SHOW = [*KVCALC, "show", "gemma-3-27b", "-c", "128k"]
COMMANDS = {
    "python -c pass": [PYTHON, "-c", "pass"],
    "only the imports": [PYTHON, "-c", IMPORTS],
    "a one-command Typer program's --help": [PYTHON, "-c", ONE_COMMAND, "--help"],
    "kvcalc show": SHOW,
    "kvcalc show --format json": [*SHOW, "--format", "json"],
    "kvcalc show --format csv": [*SHOW, "--format", "csv"],
    "kvcalc show --engine vllm": [*SHOW, "--engine", "vllm"],
    "kvcalc --help": [*KVCALC, "--help"],
    "kvcalc show --help": [*KVCALC, "show", "--help"],
    "kvcalc --version": [*KVCALC, "--version"],
}


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(runs + 1):
        for name, command in COMMANDS.items():
            start = time.perf_counter()
            subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
            times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(each[1:]) for name, each in times.items()}  # the first run fills the caches
    imports, typer_help = medians["only the imports"], medians["a one-command Typer program's --help"]
    print(f"{'':40}{'ms':>8}{'/ imports':>12}{'/ Typer --help':>16}")
    for name, median in medians.items():
        print(f"{name:40}{1000 * median:8.0f}{median / imports:12.2f}{median / typer_help:16.2f}")


if __name__ == "__main__":
    main()
