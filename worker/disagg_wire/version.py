"""The version of the project, which stands here alone.

It is that of the wheel, the chart, the images, `--version` and the metric `disagg_build_info`.
"""

from __future__ import annotations

import platform
import re

from disagg_wire import series

# PEP 440, since the wheel is named after it. `make generate` carries it into the chart.
VERSION = "0.2.0.dev0"

# The gauge is always 1: its labels are what there is to know.
BUILD_INFO_HELP = "1, labelled with the component, the project's version and the version of Python that runs it"

_PEP_440 = re.compile(r"(?P<release>\d+\.\d+\.\d+)(?:\.?(?P<word>dev|a|b|rc)(?P<number>\d+))?")
_SEMVER_WORDS = {"dev": "dev", "a": "alpha", "b": "beta", "rc": "rc"}


def semver(version: str = VERSION) -> str:
    """Return the version as SemVer writes it, for Helm and image tags: 0.2.0.dev0 becomes
    0.2.0-dev.0.
    """
    found = _PEP_440.fullmatch(version)
    if found is None:
        raise ValueError(f"{version!r} has no form in SemVer: write X.Y.Z, followed by devN, aN, bN or rcN if at all")
    if found["word"] is None:
        return found["release"]
    return f"{found['release']}-{_SEMVER_WORDS[found['word']]}.{found['number']}"


def build_labels(component: str) -> dict[str, str]:
    """Return the labels of `disagg_build_info` for this process."""
    return {series.COMPONENT: component, series.VERSION: VERSION, series.PYTHON: platform.python_version()}
