"""Write the files that are made from code, or with --check say which of them are out of date.

Usage: generate.py [--check]   (`make generate`; `make lint` checks)
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from scripts.dashboards import files as dashboards  # noqa: E402
from tests.operator.desired.golden import golden_files  # noqa: E402  (the path above comes first)

from disagg_operator.api import crdgen  # noqa: E402
from disagg_operator.status.alerts import limits, rule_file  # noqa: E402
from disagg_wire.version import semver  # noqa: E402
from scripts import metrics_page, settings_page  # noqa: E402

PROBE_TEXT = ROOT / "operator/disagg_operator/engines/probe_text.py"
CHART = ROOT / "helm/disagg/Chart.yaml"


def crd_files() -> dict[Path, str]:
    """Return the CRDs twice: in crds/ for `kubectl apply`, and in the chart."""
    texts = {name: crdgen.as_text(content) for name, content in crdgen.generate().items()}
    return {ROOT / folder / name: text for folder in ("crds", "helm/disagg/crds") for name, text in texts.items()}


def chart_files() -> dict[Path, str]:
    """Return Chart.yaml with the project's version in it; the rest of it is written by hand."""
    text, found = re.subn(
        r"^(version|appVersion): .*$", rf"\1: {semver()}", CHART.read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    if found != 2:
        raise ValueError(f"{CHART.name} must have one `version` and one `appVersion`")
    return {CHART: text}


def settings_files() -> dict[Path, str]:
    """Return the page that lists all settings."""
    return {ROOT / "docs/settings.md": settings_page.page()}


def metrics_files() -> dict[Path, str]:
    """Return the page that lists all metrics."""
    return {ROOT / "docs/metrics.md": metrics_page.page()}


def rule_files() -> dict[Path, str]:
    """Return the rules for Prometheus, and what the chart makes a PrometheusRule of."""
    texts = {
        "disagg.rules.yaml": rule_file.as_text(),
        "form.yaml": rule_file.as_form(),
        "limits.yaml": limits.as_text(),
    }
    return {ROOT / "helm/disagg/rules" / name: text for name, text in texts.items()}


def probe_files() -> dict[Path, str]:
    """Return the probe of the network as a text, for the containers of other engines.

    Without the import that must come first in a file, since it stands in the middle of a program.
    """
    source = (ROOT / "worker/disagg_protocol/fabric_probe.py").read_text(encoding="utf-8")
    text = source.replace("from __future__ import annotations\n\n", "").replace("\\", "\\\\")
    head = '"""PURE: The text of disagg_protocol.fabric_probe, written by `make generate`."""\n\n'
    quoted = text.replace('"""', r"\"\"\"")
    return {PROBE_TEXT: f'{head}from __future__ import annotations\n\nPROBE = """\\\n{quoted}"""\n'}


# To generate one more file, add a function that returns its path and the text that it must have.
SOURCES: tuple[Callable[[], dict[Path, str]], ...] = (
    crd_files,
    chart_files,
    probe_files,
    golden_files,
    settings_files,
    metrics_files,
    rule_files,
    dashboards.dashboard_files,
)


def stale(sources: tuple[Callable[[], dict[Path, str]], ...] = SOURCES) -> dict[Path, str]:
    """Return the files that are missing or differ from what code gives, with their right text."""
    wanted = {path: text for source in sources for path, text in source().items()}
    return {
        path: text for path, text in wanted.items() if not path.is_file() or path.read_text(encoding="utf-8") != text
    }


def main() -> None:
    found = stale()
    if "--check" in sys.argv[1:]:
        if found:
            sys.exit(f"stale, run `make generate`: {', '.join(str(path.relative_to(ROOT)) for path in found)}")
        return
    for path, text in found.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(f"wrote {path.relative_to(ROOT)}")
    if PROBE_TEXT in found:  # the golden files contain it
        os.execv(sys.executable, [sys.executable, *sys.argv])


if __name__ == "__main__":
    main()
