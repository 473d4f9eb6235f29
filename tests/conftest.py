"""Settings that must be made before tests are imported.

Without a GPU, Triton's kernels are interpreted. The Hypothesis profile is loaded.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path

from tests import profiles

HAS_GPU = Path("/dev/nvidiactl").exists()

if not HAS_GPU:
    os.environ["TRITON_INTERPRET"] = "1"

# Tests that run side by side share the cores. This must be set before anything imports torch.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

profiles.load()


def _share_certificates() -> None:
    """Let all clients of httpx share one TLS context.

    Otherwise each test of the router would read the certificates of all authorities ten times.
    """
    from httpx._transports import default

    default.create_ssl_context = functools.cache(default.create_ssl_context)  # type: ignore[attr-defined]


_share_certificates()
