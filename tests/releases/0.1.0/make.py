"""Make the recorded files of this folder again, with the code of the wheel in it: `python tests/releases/0.1.0/make.py [part ...]`.

Wheel, chart, CRDs and the resources in corpus/ are what was released; everything else is made from them. Each part is a script of its own
that runs with the unpacked wheel in front of everything else that Python could import.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
WHEEL = HERE / "disagg-0.1.0-py3-none-any.whl"
PARTS = ("corpus", "states", "transfer", "messages")


def main() -> None:
    parts = sys.argv[1:] or PARTS
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(WHEEL) as wheel:
            wheel.extractall(folder)
        environment = {k: v for k, v in os.environ.items() if not k.startswith("DISAGG_")} | {"PYTHONPATH": folder}
        for part in parts:
            print(part, flush=True)
            subprocess.run([sys.executable, str(HERE / f"make_{part}.py")], env=environment, check=True)


if __name__ == "__main__":
    main()
