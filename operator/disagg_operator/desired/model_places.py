"""PURE: Where a pod finds the model and its LoRA adapters, and the volumes that hold them."""

from __future__ import annotations

from disagg_operator.api import DisaggDeployment
from disagg_operator.vocabulary import Objs

MODEL_MOUNT = "/mnt/model"
_CLAIMS_MOUNT = "/mnt/claims"
_HUB, _CLAIM, _FILE = "hf://", "pvc://", "file://"


def uses_hub(dd: DisaggDeployment) -> bool:
    """Return whether the model or an adapter is fetched from the Hugging Face hub."""
    return any(uri.startswith(_HUB) for uri in _uris(dd))


def place_of(dd: DisaggDeployment, uri: str) -> str:
    """Return the folder of a checkpoint in a worker's container, or its ORG/NAME on the hub."""
    if uri.startswith(_HUB):
        return uri.removeprefix(_HUB)
    if uri.startswith(_FILE):
        return uri.removeprefix(_FILE)
    claim, _, path = uri.removeprefix(_CLAIM).partition("/")
    return f"{_mounts(dd)[claim]}/{path}".rstrip("/")


def image_folder(dd: DisaggDeployment) -> str:
    """Return the folder of a model that is a part of the image, or ""."""
    uri = dd.spec.model.uri
    return uri.removeprefix(_FILE) if uri.startswith(_FILE) else ""


def claim_volumes(dd: DisaggDeployment) -> Objs:
    """Return the volumes of all claims."""
    return [
        {"name": _volume(dd, claim), "persistentVolumeClaim": {"claimName": claim, "readOnly": True}}
        for claim in _mounts(dd)
    ]


def claim_mounts(dd: DisaggDeployment) -> Objs:
    """Return the mounts of all claims, which are read-only."""
    return [{"name": _volume(dd, claim), "mountPath": path, "readOnly": True} for claim, path in _mounts(dd).items()]


def _uris(dd: DisaggDeployment) -> list[str]:
    return [dd.spec.model.uri, *(adapter.uri for adapter in dd.spec.model.adapters)]


def _mounts(dd: DisaggDeployment) -> dict[str, str]:
    """Return the mount path of each claim. The model's comes first if it is on one."""
    out: dict[str, str] = {}
    for index, uri in enumerate(_uris(dd)):
        if uri.startswith(_CLAIM):
            claim = uri.removeprefix(_CLAIM).partition("/")[0]
            out.setdefault(claim, f"{_CLAIMS_MOUNT}/{claim}" if index else MODEL_MOUNT)
    return out


def _volume(dd: DisaggDeployment, claim: str) -> str:
    mounts = _mounts(dd)
    return "model" if mounts[claim] == MODEL_MOUNT else f"claim-{[*mounts].index(claim)}"
