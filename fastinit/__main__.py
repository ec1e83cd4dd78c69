"""python -m fastinit: cli/commands.py."""

import sys

from fastinit.cli.commands import main

if __name__ == "__main__":
    sys.exit(main())
