"""PURE: The check of resources that were never validated against this CRD.

They were stored before an upgrade, or are given to `disagg local` as a file. The rules are those
from which the CRD is generated.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from disagg_operator.api.base import Model
from disagg_operator.api.expressions import attributes


def refusals(model: Model, path: str = "") -> Iterator[str]:
    """Yield `path: message` for every broken rule of a model and of its parts, parts first."""
    for name, attribute in attributes(type(model)).items():
        here = _joined(path, name)
        for place, part in _parts(model, attribute, here):
            yield from refusals(part, place)
    for field, message in model.broken():
        yield f"{_joined(path, field)}: {message}"


def unknown_fields(model: Model, raw: Any, path: str = "") -> Iterator[str]:
    """Yield the paths in `raw` for which the model has no field.

    The API server rejects such fields, but nothing else checks a file on a disk.
    """
    fields = attributes(type(model))
    for key, value in raw.items() if isinstance(raw, dict) else ():
        here = _joined(path, str(key))
        if key not in fields:
            if type(model).model_config.get("extra") != "allow":
                yield here
            continue
        held = getattr(model, fields[key])
        if isinstance(held, Model):
            yield from unknown_fields(held, value, here)
        elif isinstance(held, list) and isinstance(value, list):
            for index, (item, raw_item) in enumerate(zip(held, value, strict=False)):
                if isinstance(item, Model):
                    yield from unknown_fields(item, raw_item, f"{here}[{index}]")


def _parts(model: Model, attribute: str, path: str) -> Iterator[tuple[str, Model]]:
    """Yield the models that a field holds, each with its path.

    An item of a list is named by its key, or else by its index.
    """
    held = getattr(model, attribute)
    if isinstance(held, Model):
        yield path, held
    elif isinstance(held, list):
        extra = type(model).model_fields[attribute].json_schema_extra
        keys = extra.get("x-kubernetes-list-map-keys") if isinstance(extra, dict) else None
        for index, item in enumerate(held):
            if isinstance(item, Model):
                key = getattr(item, attributes(type(item))[str(keys[0])]) if isinstance(keys, list) else index
                yield f"{path}[{key}]", item


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path and name else path or name
