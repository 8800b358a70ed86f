"""Run a benchmark by name, or all: `python -m benchmarks NAME [--json FILE] [--docs]`.

Each module of this package whose name has no leading underscore is one; its `run()` returns {figure: value}.
"""

import argparse
import importlib
import json
import os
import pkgutil
import platform
import re
import sys
from datetime import datetime, timezone
from pathlib import Path

import torch

import benchmarks
from benchmarks import _docs


def main() -> None:
    """Print each figure; with --json also write them, with machine, date and command."""
    modules = [module.name for module in pkgutil.iter_modules(benchmarks.__path__)]
    names = [name for name in modules if not name.startswith("_")]
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=benchmarks.__doc__)
    parser.add_argument("name", choices=[*names, "all"])
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--folds", help="of the model, such as 0,1 (default: all)")
    parser.add_argument(
        "--cases", help="folder of sarcoma patients (default: ../shared/data/ibsi_validation)"
    )
    parser.add_argument(
        "--docs", action="store_true", help="also write tables to docs/performance.md, as `all` does"
    )
    options = parser.parse_args()
    for name in ("folds", "cases"):
        if value := getattr(options, name):
            os.environ[f"PETCLICK_BENCHMARK_{name.upper()}"] = value
    machine, command = _machine(), " ".join(["python -m benchmarks", *sys.argv[1:]])
    results = {}
    for name in names if options.name == "all" else [options.name]:
        results[name] = importlib.import_module(f"benchmarks.{name}").run()
        for figure, value in results[name].items():
            print(f"{name}  {figure}: {value:.4g}", flush=True)
        if options.docs or options.name == "all":
            origin = f"{machine}; {datetime.now(timezone.utc):%Y-%m-%d}; `{command}`"
            _docs.PAGE.write_text(
                _docs.update(_docs.PAGE.read_text("utf-8"), name, results[name], origin), "utf-8"
            )
            if name == "scaling":
                _docs.plot_scaling(results[name], _docs.PLOT)
    if options.json:
        record = {
            "machine": machine,
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "command": command,
            "results": results,
        }
        options.json.write_text(json.dumps(record, indent=2) + "\n", "utf-8")


def _machine() -> str:
    """Processor, cores, memory and versions."""
    cpus = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*: (.+)", cpus.read_text()) if cpus.is_file() else []
    cpu = models[0] if models else platform.machine()
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    threads = f"{torch.get_num_threads()} of {os.cpu_count()} cores"
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    return f"{cpu}, {threads}, {gib:.0f} GiB, {versions}"


if __name__ == "__main__":
    main()
