"""Write docs/settings.md: every setting of the four processes, from their settings classes."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from disagg_adapter.settings import Settings as AdapterSettings
from disagg_operator.settings import OperatorSettings
from disagg_router.settings import Settings as RouterSettings
from disagg_wire.environment import AdapterVariable, RouterVariable, WorkerVariable, variable_of
from disagg_worker.settings import Settings as WorkerSettings

HEAD = """# Settings

Each process reads its settings once, at start, from environment variables. A variable that is missing or wrong ends the
process with a message that names it. All but the operator take an empty variable for one that is not set.

This page is generated from the settings classes by `make generate`; do not edit it.
"""
OPERATOR = """\
The chart sets the images, the watched namespace, the log level and the folder of the decision log. The others keep
their defaults unless the operator's Deployment sets them.
"""
ROUTER = """The operator sets those marked *operator*, from the resource or the cluster. The others keep their defaults.
"""
WORKER = """\
The operator sets those marked *operator*, from the resource or from the pod; `spec.engine.env` must not contain them.
The others can be set in `spec.engine.env`.
"""
ADAPTER = """\
The adapter runs beside an engine of another project (docs/engines.md). The operator sets those marked *operator*, from
the resource or from the pod. The others keep their defaults.
"""


def page() -> str:
    """Return the whole page."""
    parts = [
        HEAD,
        _section("Operator", OPERATOR, OperatorSettings, None),
        _section("Router", ROUTER, RouterSettings, RouterVariable, "default"),
        _section("Worker", WORKER, WorkerSettings, WorkerVariable, "`engine.env`"),
        _section("Adapter", ADAPTER, AdapterSettings, AdapterVariable, "default"),
    ]
    return "\n".join(parts)


def _section(title: str, text: str, settings: type[BaseModel], reserved: type[StrEnum] | None, other: str = "") -> str:
    names = set() if reserved is None else set(reserved)
    marks = "" if reserved is None else " set by |"
    rows = [
        f"| variable | default | bounds |{marks} description |",
        f"|---|---|---|{'---|' * (reserved is not None)}---|",
    ]
    for field, info in settings.model_fields.items():
        name = variable_of(field)
        setter = "" if reserved is None else f" {'operator' if name in names else other} |"
        rows.append(f"| `{name}` | {_default(info)} | {_bounds(info, settings, field)} |{setter} {info.description} |")
    return "\n".join([f"## {title}\n", text, *rows, ""])


def _default(info: FieldInfo) -> str:
    if info.is_required() or info.default is PydanticUndefined:
        return "required"
    if info.default is None or info.default == "":
        return "not set"
    return f"`{str(info.default).lower() if isinstance(info.default, bool) else info.default}`"


def _bounds(info: FieldInfo, settings: type[BaseModel], field: str) -> str:
    schema = settings.model_json_schema()["properties"][field]
    options = [schema, *schema.get("anyOf", [])]
    found: list[str] = []
    for option in options:
        found.extend(_bounds_of(option))
    return ", ".join(dict.fromkeys(found))


def _bounds_of(schema: dict[str, Any]) -> list[str]:
    out = []
    if "enum" in schema:
        out.append(" or ".join(f"`{value}`" for value in schema["enum"]))
    for key, word in (("minimum", ">="), ("exclusiveMinimum", ">"), ("maximum", "<="), ("exclusiveMaximum", "<")):
        if key in schema:
            out.append(f"{word} {schema[key]:g}" if isinstance(schema[key], float) else f"{word} {schema[key]}")
    if schema.get("type") == "boolean":
        out.append("`true` or `false`")
    return out
