"""The check of `helm test`: `python -m disagg_operator.cli.installation_check URL`.

It asks the operators for their health, and the API server whether it serves the kinds of disagg.
"""

from __future__ import annotations

import asyncio
import os
import sys

import httpx

from disagg_operator.kube import credentials
from disagg_operator.kube.client import HttpKube
from disagg_operator.kube.errors import KubeError
from disagg_operator.kube.resources import DISAGG_DEPLOYMENT, DISAGG_POOL, DISAGG_SCALER

_ATTEMPTS = 15
_PAUSE_S = 2.0
_TIMEOUT_S = 5.0


async def problems(url: str) -> list[str]:
    """Return what is wrong with an installation whose operators answer at `url`."""
    found = []
    kube = HttpKube(credentials.load(os.environ))
    try:
        for resource in (DISAGG_DEPLOYMENT, DISAGG_POOL, DISAGG_SCALER):
            if not await kube.has_api(resource):
                found.append(f"the API server does not serve {resource.plural}.{resource.api_version.split('/')[0]}")
    except KubeError as error:
        found.append(str(error))
    finally:
        await kube.close()
    try:
        async with httpx.AsyncClient(trust_env=False, timeout=_TIMEOUT_S) as http:
            answer = await http.get(f"{url.rstrip('/')}/healthz")
        if answer.status_code != 200:
            found.append(f"the operator is not healthy: {answer.text[:1000]}")
    except httpx.HTTPError as error:
        found.append(f"the operator does not answer: {type(error).__name__} {error}")
    return found


async def check(url: str, attempts: int = _ATTEMPTS, pause_s: float = _PAUSE_S) -> list[str]:
    """Return what is wrong after some attempts, because a new installation needs a moment."""
    for attempt in range(attempts):
        if attempt:
            await asyncio.sleep(pause_s)
        if not (found := await problems(url)):
            return []
    return found


def main(argv: list[str]) -> int:
    """Run the check and return the exit status."""
    if len(argv) != 1:
        print("usage: python -m disagg_operator.cli.installation_check URL", file=sys.stderr)
        return 2
    found = asyncio.run(check(argv[0]))
    print("\n".join(found) or "the operators are healthy, and the kinds of disagg are served")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
