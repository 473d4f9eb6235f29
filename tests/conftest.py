"""Before anything imports Triton: where there is no GPU its kernels are interpreted. The Hypothesis profile, too."""

from __future__ import annotations

import functools
import os
from pathlib import Path

from tests import profiles

HAS_GPU = Path("/dev/nvidiactl").exists()

if not HAS_GPU:
    os.environ["TRITON_INTERPRET"] = "1"

# Tests that run side by side share the cores: before anything imports torch.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

profiles.load()


def _share_certificates() -> None:
    """Let the clients of httpx share the certificates of all authorities: a test of the router would read them ten times."""
    from httpx._transports import default

    default.create_ssl_context = functools.cache(default.create_ssl_context)


_share_certificates()
