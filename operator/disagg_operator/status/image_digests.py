"""PURE: Whether pods of one revision run different images under one tag, because it was moved."""

from __future__ import annotations

from collections.abc import Iterable

from disagg_operator.kube.pods import is_terminating, pool_of
from disagg_operator.kube.resources import labels_of
from disagg_operator.vocabulary import Obj
from disagg_wire.labels import LABEL_COMPONENT, LABEL_REVISION

TAG_MOVED = "TagMoved"
_DIGEST = "@sha256:"
# So much of a digest is shown that a person can tell it from another one.
_SHOWN_CHARS = 12


def moved_tags(pods: Iterable[Obj]) -> tuple[tuple[str, str], ...]:
    """Return a warning, as a reason and a message, for each image that has several digests.

    The kubelet reports a digest once it has started the container. An image that it did not pull
    from a registry has none.
    """
    seen: dict[tuple[str, str, str], dict[str, int]] = {}
    for pod in pods:
        if is_terminating(pod):
            continue
        labels = labels_of(pod)
        part, revision = pool_of(pod) or labels.get(LABEL_COMPONENT, ""), labels.get(LABEL_REVISION, "")
        for image, digest in _images(pod):
            counts = seen.setdefault((part, revision, image), {})
            counts[digest] = counts.get(digest, 0) + 1
    out = []
    for (part, _, image), counts in sorted(seen.items()):
        if len(counts) > 1:
            builds = " and ".join(f"sha256:{d[:_SHOWN_CHARS]} in {n}" for d, n in sorted(counts.items()))
            words = f"pods of {part} run different images as {image}: {builds}; name the image by its digest"
            out.append((TAG_MOVED, words))
    return tuple(out)


def _images(pod: Obj) -> Iterable[tuple[str, str]]:
    """Yield each image as the pod names it, and its digest, if a tag could be moved."""
    spec, status = pod.get("spec") or {}, pod.get("status") or {}
    for kind in ("initContainers", "containers"):
        named = {str(c.get("name")): str(c.get("image") or "") for c in spec.get(kind) or []}
        for container in status.get(f"{kind[:-1]}Statuses") or []:
            image = named.get(str(container.get("name")), "")
            _, found, digest = str(container.get("imageID") or "").partition(_DIGEST)
            if image and found and _DIGEST not in image:
                yield image, digest
