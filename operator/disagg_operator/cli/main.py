"""`disagg`: the commands and their arguments; each command's work is in a module of its own."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path


def parser() -> argparse.ArgumentParser:
    """All commands."""
    top = argparse.ArgumentParser(prog="disagg", description="Serve language models from separate prefill and decode pools.")
    commands = top.add_subparsers(dest="command", required=True)
    local = commands.add_parser("local", help="run a DisaggDeployment as processes on this machine, without a cluster")
    local.add_argument("-f", "--file", type=Path, required=True, help="YAML file with one DisaggDeployment")
    local.add_argument("--port", type=int, default=8080, help="port of the OpenAI API on 127.0.0.1 (default 8080)")
    local.add_argument("--ask", metavar="TEXT", help="ask this as soon as it is up, and show what happened")
    local.add_argument("--once", action="store_true", help="stop after the answer to --ask")
    local.add_argument("--timeout-s", type=float, default=300.0, help="how long to wait until it is up (default 300)")
    return top


def main(argv: list[str] | None = None) -> None:
    arguments = parser().parse_args(argv)
    from disagg_operator.cli import local

    try:
        sys.exit(asyncio.run(local.run(arguments)))
    except KeyboardInterrupt:
        sys.exit(130)
    except local.LocalError as error:
        sys.exit(f"disagg local: {error}")
