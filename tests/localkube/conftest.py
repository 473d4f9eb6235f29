"""Setup for the tests of the cluster tool, which is a program of its own: its modules are below
e2e/.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "e2e"))
