"""Make CustomResourceDefinitions from the pydantic models.

They are structural schemas with every field described. `make generate` writes them to crds/ and to
the chart.
"""

from __future__ import annotations

from typing import Any

import yaml

from disagg_operator.api.base import GROUP, VERSION, Model
from disagg_operator.api.disagg_scaler import DisaggScaler
from disagg_operator.api.pool import DisaggPool
from disagg_operator.api.v1alpha1 import DisaggDeployment

_KEEP = {
    "type", "description", "properties", "items", "required", "enum", "default", "minimum", "maximum", "minLength",
    "maxLength", "pattern", "maxItems", "maxProperties", "minProperties", "additionalProperties",
}  # fmt: skip


def structural(schema: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """Return a JSON schema of pydantic as a structural OpenAPI v3 schema.

    References are inlined, unions with null are reduced to the other part, and titles are dropped.
    """
    if "$ref" in schema:
        target = definitions[schema["$ref"].rsplit("/", 1)[-1]]
        schema = {**target, **{k: v for k, v in schema.items() if k != "$ref"}}
    if "anyOf" in schema:
        options = [o for o in schema["anyOf"] if o.get("type") != "null"]
        rest = {k: v for k, v in schema.items() if k != "anyOf"}
        if rest.get("default", 0) is None:
            rest.pop("default")
        if len(options) == 1:
            return structural({**options[0], **rest}, definitions)
        if schema.get("x-kubernetes-int-or-string"):
            return {k: v for k, v in rest.items() if k != "title"}
    out = {k: v for k, v in schema.items() if k in _KEEP or k.startswith("x-kubernetes-")}
    if "exclusiveMinimum" in schema:  # a flag in OpenAPI v3
        out |= {"minimum": schema["exclusiveMinimum"], "exclusiveMinimum": True}
    if "description" in out:  # a docstring may have several lines
        out["description"] = " ".join(out["description"].split())
    if "const" in schema:
        out["enum"] = [schema["const"]]
    if out.get("x-kubernetes-preserve-unknown-fields") or out.get("additionalProperties") is True:
        out.pop("additionalProperties", None)
    if out.get("additionalProperties") is False:
        del out["additionalProperties"]
    if out.get("default") in ({}, [], ""):
        del out["default"]  # it says nothing and costs bytes
    if isinstance(out.get("default"), dict):
        out["default"] = {}  # the parts have defaults of their own
    if "properties" in out:
        out["properties"] = {k: structural(v, definitions) for k, v in out["properties"].items()}
    for name in ("items", "additionalProperties"):
        if isinstance(out.get(name), dict):
            out[name] = structural(out[name], definitions)
    return out


def _without_defaults(schema: Any) -> Any:
    """Return the schema of a status without defaults.

    The operator writes the status, and a default would hide a field that it left out.
    """
    if isinstance(schema, dict):
        kept = {k: v for k, v in schema.items() if k != "default" or (isinstance(v, dict) and "type" in v)}
        return {k: _without_defaults(v) for k, v in kept.items()}
    return [_without_defaults(v) for v in schema] if isinstance(schema, list) else schema


def crd(kind: type[Model], plural: str, short: str, columns: list[dict[str, Any]], *, scale: bool) -> dict[str, Any]:
    """Return the CustomResourceDefinition of one kind."""
    raw = kind.model_json_schema(by_alias=True, mode="validation")
    definitions = raw.get("$defs", {})
    schema = structural(raw, definitions)
    schema["properties"]["status"] = _without_defaults(schema["properties"]["status"])
    schema["properties"] |= {
        "apiVersion": {"type": "string", "description": "disagg.dev/v1alpha1."},
        "kind": {"type": "string", "description": f"{kind.__name__}."},
        "metadata": {"type": "object"},  # the API server forbids a description here
    }
    schema["required"] = ["spec"]
    subresources: dict[str, Any] = {"status": {}}
    if scale:
        subresources["scale"] = {
            "specReplicasPath": ".spec.replicas",
            "statusReplicasPath": ".status.replicas",
            "labelSelectorPath": ".status.selector",
        }
    version = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": schema},
        "subresources": subresources,
        "additionalPrinterColumns": columns,
    }
    singular = kind.__name__.lower()
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": kind.__name__,
                "listKind": f"{kind.__name__}List",
                "plural": plural,
                "singular": singular,
                "shortNames": [short],
                "categories": ["all", "serving"],
            },
            "versions": [version],
        },
    }


def _column(name: str, path: str, kind: str = "string", **more: Any) -> dict[str, Any]:
    return {"name": name, "type": kind, "jsonPath": path, **more}


def generate() -> dict[str, dict[str, Any]]:
    """Return each CustomResourceDefinition by its file name."""
    age = _column("Age", ".metadata.creationTimestamp", "date")
    ready = '.status.conditions[?(@.type=="Ready")]'
    deployment_columns = [
        _column("Ready", f"{ready}.status"),
        _column("Reason", f"{ready}.reason"),
        _column("Model", ".status.model"),
        _column("Prefill", ".status.prefill"),
        _column("Decode", ".status.decode"),
        _column("URL", ".status.url"),
        _column("Revision", ".status.revision.current", priority=1),
        _column("Transport", ".status.pairs.uses", priority=1),
        _column("Evidence", ".status.pairs.evidence", priority=1),
        _column("Pairs", ".status.pairs.healthy", "integer", priority=1),
        age,
    ]
    pool_columns = [
        _column("Role", ".spec.role"),
        _column("Desired", ".spec.replicas", "integer"),
        _column("Current", ".status.replicas", "integer"),
        _column("Ready", ".status.readyReplicas", "integer"),
        age,
    ]
    scaler_columns = [
        _column("Mode", ".spec.mode"),
        _column("Ready", f"{ready}.status"),
        _column("Reason", f"{ready}.reason"),
        _column("Prefill", ".status.prefill"),
        _column("Decode", ".status.decode"),
        age,
    ]
    deployments = crd(DisaggDeployment, "disaggdeployments", "dd", deployment_columns, scale=False)
    pools = crd(DisaggPool, "disaggpools", "dp", pool_columns, scale=True)
    scalers = crd(DisaggScaler, "disaggscalers", "dsc", scaler_columns, scale=False)
    return {
        "disagg.dev_disaggdeployments.yaml": deployments,
        "disagg.dev_disaggpools.yaml": pools,
        "disagg.dev_disaggscalers.yaml": scalers,
    }


class _PlainDumper(yaml.SafeDumper):
    """A dumper without anchors, which writes a list in two places twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def as_text(content: dict[str, Any]) -> str:
    """Return a manifest as YAML."""
    # `helm show crds` puts the files behind each other without a separator of its own.
    head = "---\n# Generated by `make generate` from operator/disagg_operator/api; do not edit.\n"
    return head + yaml.dump(content, Dumper=_PlainDumper, sort_keys=False, width=120)
