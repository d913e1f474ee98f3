"""Run the command line as ``python -m tariq``."""

import sys

from tariq.cli import main

if __name__ == "__main__":
    sys.exit(main())
