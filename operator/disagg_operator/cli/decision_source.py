"""The source of decisions for `disagg explain` and `disagg replay`.

The decisions are read from a file, or from the operator of a cluster through the API server.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
from pathlib import Path

from disagg_operator.autoscaling.records import decision_records
from disagg_operator.controller.decisions_right import KEY_HEADER, key_in, secret_name
from disagg_operator.kube import credentials
from disagg_operator.kube.client import HttpKube
from disagg_operator.kube.errors import Forbidden, KubeError
from disagg_operator.kube.resources import DISAGG_DEPLOYMENT, POD, SECRET, name_of, namespace_of
from disagg_operator.vocabulary import Obj
from disagg_wire.environment import OperatorVariable
from disagg_wire.ports import OPERATOR_HEALTH_PORT

_OPERATOR = "app.kubernetes.io/name=disagg-operator"
_SCALER = "scaler/"
# An operator asks for the Secret no more often than this.
_READ_AGAIN_S = 5.0
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


class SourceError(Exception):
    """Raised when no decisions are available; the message explains why."""


ERRORS = (SourceError, decision_records.JournalError, credentials.NoCredentials, KubeError, OSError, ValueError)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that the commands have in common."""
    parser.add_argument(
        "source", help="name of a DisaggDeployment, scaler/NAME of a DisaggScaler, or a file of records"
    )
    parser.add_argument(
        "-n", "--namespace", help="namespace of the resource (default: that of the kubeconfig's context)"
    )
    parser.add_argument(
        "--since", metavar="TIME", default="1h", help="only the last TIME, such as 30m, 2h or 1d (default 1h)"
    )
    parser.add_argument("--save", type=Path, metavar="FILE", help="also save the records, to be read again later")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="write load, queues, workers and objectives as PNG or HTML"
    )


def seconds(text: str) -> float:
    """Return the number of seconds in a text such as 30m, 2h or 90s. Raises ValueError."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smhd])", text)
    if found is None:
        raise ValueError(f"--since: {text!r} is no time such as 30m, 2h or 1d")
    return float(found[1]) * _SECONDS[found[2]]


def load(args: argparse.Namespace) -> list[decision_records.Run]:
    """Return all runs that the source has. Raises one of ERRORS."""
    seconds(args.since)  # raises for a bad time before any work is done
    path = Path(args.source)
    if path.is_dir():
        raise SourceError(f"{path} is a folder, not a file of records")
    text = _text(path) if path.is_file() else asyncio.run(_fetch(args.namespace, args.source))
    if args.save is not None:
        args.save.write_text(text, encoding="utf-8")
    runs = decision_records.read(text.splitlines())
    if not any(run.steps for run in runs):
        raise SourceError(f"{args.source}: no decisions are recorded: it has no autoscaling, or began just now")
    return runs


def status_of(args: argparse.Namespace) -> Obj:
    """Return the status of the resource; {} for a file, and for what can't be read."""
    if Path(args.source).exists():
        return {}
    if args.source.startswith(_SCALER):
        return {}
    try:
        resource = asyncio.run(_resource(args.namespace, args.source))
    except (KubeError, credentials.NoCredentials, OSError):
        return {}
    return dict((resource or {}).get("status") or {})


async def _resource(namespace: str | None, name: str) -> Obj | None:
    found = credentials.load(os.environ)
    kube = HttpKube(found, attempts=1)
    try:
        return await kube.get(DISAGG_DEPLOYMENT, namespace or found.namespace, name)
    finally:
        await kube.close()


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise SourceError(f"{path}: is no text, as records are") from None


async def _page(kube: HttpKube, pod: Obj, path: str) -> str:
    """Return the records that one operator has. Raises KubeError, and SourceError without the right
    to them.
    """
    namespace, name = str(namespace_of(pod)), secret_name(_lease_name(pod))
    key, may_get, tries = None, True, 3
    while tries and may_get:
        tries -= 1
        try:
            key = key_in(await kube.get(SECRET, namespace, name))
        except Forbidden:  # an operator of an earlier release asks for no key
            may_get = False
        try:
            return await kube.pod_page(
                namespace, name_of(pod), OPERATOR_HEALTH_PORT, path, {KEY_HEADER: key} if key else None
            )
        except Forbidden as error:
            if KEY_HEADER not in str(error):
                raise
        # Whoever leads has just made the Secret; one that stands by has looked too recently.
        if key is not None and tries:
            await asyncio.sleep(_READ_AGAIN_S)
    raise SourceError(f"decisions are for those who may get the Secret {name} in the namespace {namespace}")


def _lease_name(pod: Obj) -> str:
    containers = (pod.get("spec") or {}).get("containers") or []
    given = {e.get("name"): e.get("value") for c in containers for e in c.get("env") or []}
    return str(given.get(OperatorVariable.LEASE_NAME) or "disagg-operator")


async def _fetch(namespace: str | None, name: str) -> str:
    found = credentials.load(os.environ)
    kube = HttpKube(found, attempts=1)
    try:
        pods = [p for p in await kube.list(POD, None, _OPERATOR) if (p.get("status") or {}).get("phase") == "Running"]
        if not pods:
            raise SourceError(f"{name} is not a file, and no running pod of the cluster has the label {_OPERATOR}")
        # Names of resources have no underscore.
        path = f"decisions/{namespace or found.namespace}/{name.replace(_SCALER, 'scaler_', 1)}"
        pages = await asyncio.gather(*(_page(kube, pod, path) for pod in pods), return_exceptions=True)
    finally:
        await kube.close()
    texts = [page for page in pages if isinstance(page, str)]
    for problem in (page for page in pages if isinstance(page, BaseException)):
        # An operator that does not answer may be one that stands by.
        if not texts or not isinstance(problem, (KubeError, SourceError)):
            raise problem
    return decision_records.merged(texts)
