"""The commands of `python -m fastinit`, and their arguments."""

from __future__ import annotations

import argparse

from fastinit.cli import demo, info


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m fastinit", description="Weight initialisation for PyTorch.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("info", help="what is installed, what was built, and what will run")
    commands.add_parser("demo", help="initialise a 1.5-billion-parameter GPT-2 XL both ways (7 GB of memory)")
    command = parser.parse_args(arguments).command
    if command == "info":
        info.run()
    else:
        demo.run()
    return 0
