#!/usr/bin/env python3
"""Build the documentation with warnings as errors: ``python docs/build.py [folder]``; docs/_build/html by default."""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main(argv: list[str]) -> int:
    """Run sphinx-build on this folder."""
    output = argv[0] if argv else str(HERE / "_build" / "html")
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-W",
        "-n",
        "--keep-going",
        "-q",
        "-j",
        "auto",
        str(HERE),
        output,
    ]
    code = subprocess.run(command, check=False).returncode
    if code == 0:
        print(f"documentation written to {output}/index.html")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
