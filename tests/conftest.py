"""Before anything imports Triton: where there is no GPU its kernels are interpreted. The Hypothesis profile, too."""

from __future__ import annotations

import os
from pathlib import Path

from tests import profiles

HAS_GPU = Path("/dev/nvidiactl").exists()

if not HAS_GPU:
    os.environ["TRITON_INTERPRET"] = "1"

profiles.load()
