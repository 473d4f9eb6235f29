"""PURE: The vocabulary that only the operator needs: keys, objects and the field manager.

Roles, labels and ports, which all processes share, are in disagg_wire.
"""

from __future__ import annotations

from typing import Any

# A Kubernetes object as a plain dict: a typed model would drop the fields that it does not know.
Obj = dict[str, Any]
Objs = list[Obj]
# The namespace and name of a DisaggDeployment, the unit of reconciliation.
Key = tuple[str, str]

# The one field manager of all server-side applies, and the value of app.kubernetes.io/managed-by.
FIELD_MANAGER = "disagg-operator"

# The annotation of a DisaggDeployment that asks for the images and the renderer of the operator's
# release. Each new value asks once. Status repeats the start of the one that was carried out.
UPDATE_RUNTIME = "disagg.dev/update-runtime"
MOST_OF_A_REQUEST = 256


def map_in(value: Any) -> Obj:
    """Return the value of a field that should be a map, or {} if it is none."""
    return value if isinstance(value, dict) else {}


def maps_in(value: Any) -> Objs:
    """Return the maps in the value of a field that should be a list of them."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
