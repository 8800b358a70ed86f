"""Run a benchmark by name, or all: `python -m benchmarks NAME [--json FILE]`.

Each module of this package whose name has no leading underscore is one; its `run()` returns {figure: value}.
"""

import argparse
import importlib
import json
import os
import pkgutil
import platform
import sys
from datetime import datetime, timezone
from pathlib import Path

import benchmarks


def main() -> None:
    """Print each figure; with --json also write them, with machine, date and command."""
    modules = [module.name for module in pkgutil.iter_modules(benchmarks.__path__)]
    names = [name for name in modules if not name.startswith("_")]
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=benchmarks.__doc__)
    parser.add_argument("name", choices=[*names, "all"])
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    results = {}
    for name in names if options.name == "all" else [options.name]:
        results[name] = importlib.import_module(f"benchmarks.{name}").run()
        for figure, value in results[name].items():
            print(f"{name}  {figure}: {value:.4g}", flush=True)
    if options.json:
        record = {
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "command": " ".join(["python -m benchmarks", *sys.argv[1:]]),
            "results": results,
        }
        options.json.write_text(json.dumps(record, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
