"""The entry point of `disagg`: its commands and their arguments.

Each command is implemented in its own module, which is imported when the command is called.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import shlex
import sys
from pathlib import Path
from typing import Any

from disagg_wire.version import VERSION

# The module and the help text of each command. A module has `arguments(parser)`, `run(args) -> int`
# and `ERRORS`, the exceptions that it raises for bad input.
TOOLS = {
    "assess": (
        "disagg_operator.cli.assess_command",
        "read a running vLLM or SGLang, a Prometheus or a log of requests, and plan from it",
    ),
    "explain": ("disagg_operator.cli.explain_command", "show what the autoscaler saw and decided, and why"),
    "plan": (
        "disagg_operator.cli.plan_command",
        "find the GPUs and replicas that serve a traffic within objectives, in two pools or in one",
    ),
    "profile": ("disagg_operator.cli.profile_command", "measure a running endpoint: a profile for simulate and plan"),
    "replay": (
        "disagg_operator.cli.replay_command",
        "apply a policy to recorded observations, and show where it decides differently",
    ),
    "rollout": (
        "disagg_operator.cli.rollout_command",
        "follow, undo, pause, resume or restart the rollout of a DisaggDeployment",
    ),
    "simulate": (
        "disagg_operator.cli.simulate_command",
        "simulate a scaling policy on a trace, request by request",
    ),
}

# What is said before the module of a command is imported, where that takes seconds.
_LOADING = {"simulate": "loading the simulator"}


def parser(tool: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of all commands, with the arguments of `tool`.

    The modules of the other commands are not imported.
    """
    top = argparse.ArgumentParser(
        prog="disagg", description="Serve language models from separate prefill and decode pools."
    )
    top.add_argument("--version", action="version", version=f"disagg {VERSION}")
    commands = top.add_subparsers(dest="command", required=True)
    local = commands.add_parser("local", help="run a DisaggDeployment as processes on this machine, without a cluster")
    local.add_argument("-f", "--file", type=Path, required=True, help="YAML file with one DisaggDeployment")
    local.add_argument("--port", type=int, default=8080, help="port of the OpenAI API on 127.0.0.1 (default 8080)")
    local.add_argument("--ask", metavar="TEXT", help="ask this as soon as it is up, and show how it was served")
    local.add_argument("--once", action="store_true", help="stop after the answer to --ask")
    local.add_argument("--timeout-s", type=float, default=300.0, help="how long to wait until it is up (default 300)")
    for name, (module, text) in TOOLS.items():
        command = commands.add_parser(name, help=text)
        if name == tool:
            _import(name, module).arguments(command)
    return top


def _import(name: str, module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("disagg_operator"):
            raise
        sys.exit(f"disagg {name}: needs {error.name}: pip install 'disagg[operator,simulate]'")


def main(argv: list[str] | None = None) -> None:
    """Run a command and exit with its status."""
    given = sys.argv[1:] if argv is None else argv
    tool = given[0] if given and given[0] in TOOLS else None
    if tool in _LOADING and not {"-h", "--help"} & set(given):
        print(f"disagg {tool}: {_LOADING[tool]} ...", file=sys.stderr, flush=True)
    arguments = parser(tool).parse_args(given)
    arguments.invocation = shlex.join(["disagg", *given])  # for reports
    if tool is not None:
        module = _import(tool, TOOLS[tool][0])
        try:
            sys.exit(module.run(arguments))
        except KeyboardInterrupt:
            sys.exit(130)
        except module.ERRORS as error:
            sys.exit(f"disagg {tool}: {error}")
    from disagg_operator.cli import local_command

    try:
        sys.exit(asyncio.run(local_command.run(arguments)))
    except KeyboardInterrupt:
        sys.exit(130)
    except local_command.LocalError as error:
        sys.exit(f"disagg local: {error}")
