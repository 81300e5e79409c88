#!/usr/bin/env python3
"""Run examples one after another: ``python examples/run_all.py [--output DIR] [--quick] [NAME ...]``, all by default.

``--output docs/generated`` makes the figures and tables that the documentation shows.
"""

import argparse
import importlib
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))


def main(argv=None):
    """Run the chosen examples; the first failure ends the run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--output", default="docs/generated", metavar="DIR", help="where figures and tables go"
    )
    parser.add_argument("--quick", action="store_true", help="less data or fewer steps")
    parser.add_argument("names", nargs="*", metavar="NAME", help="for example 01_dipoles")
    options = parser.parse_args(argv)
    known = sorted(path.stem for path in HERE.glob("[0-9][0-9]_*.py"))
    unknown = sorted(set(options.names) - set(known))
    if unknown:
        parser.error(f"no example {', '.join(unknown)}; there are {', '.join(known)}")
    for name in options.names or known:
        started = time.process_time(), time.perf_counter()
        print(f"== {name}", flush=True)
        importlib.import_module(name).main(
            ["--output", options.output, *(["--quick"] if options.quick else [])]
        )
        cpu, wall = time.process_time() - started[0], time.perf_counter() - started[1]
        print(f"== {name}: {cpu:.0f} s of CPU time, {wall:.0f} s\n", flush=True)


if __name__ == "__main__":
    main()
