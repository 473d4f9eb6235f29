"""Before anything imports Triton: where there is no GPU its kernels are interpreted."""

from __future__ import annotations

import os
from pathlib import Path

HAS_GPU = Path("/dev/nvidiactl").exists()

if not HAS_GPU:
    os.environ["TRITON_INTERPRET"] = "1"
