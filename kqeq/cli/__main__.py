"""``python -m kqeq.cli``."""

import sys

from kqeq.cli import main

if __name__ == "__main__":
    sys.exit(main())
