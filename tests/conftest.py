"""Settings that must be made before tests are imported.

Without a GPU, Triton's kernels are interpreted. The Hypothesis profile is loaded.
"""

from __future__ import annotations

import os
from pathlib import Path

from tests import profiles

HAS_GPU = Path("/dev/nvidiactl").exists()

if not HAS_GPU:
    os.environ["TRITON_INTERPRET"] = "1"

profiles.load()
