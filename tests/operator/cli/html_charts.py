"""The charts of an HTML page, as the page holds them."""

from __future__ import annotations

import json
import re
from typing import Any


def charts_of(page: str) -> list[dict[str, Any]]:
    """Return the charts that a page draws."""
    (found,) = re.findall(r'<script type="application/json" id="charts">(.*?)</script>', page, re.DOTALL)
    charts: list[dict[str, Any]] = json.loads(found)
    return charts
