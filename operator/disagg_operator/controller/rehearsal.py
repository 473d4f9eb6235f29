"""Lets the API server judge every object of a resource before the first one is written.

It is a dry run of what the reconcile is about to do. Admission control takes part: policies,
webhooks and quotas. Thus a refused resource leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Iterable, Iterator, Sequence

from disagg_operator.controller import children as kids
from disagg_operator.controller import drift
from disagg_operator.controller.acceptance import Refused
from disagg_operator.controller.blame import described, field_to_blame
from disagg_operator.controller.children import ChildKey, Children, NameTaken
from disagg_operator.kube.client import Kube
from disagg_operator.kube.errors import Denied, Invalid
from disagg_operator.kube.resources import ROLE_BINDING, SECRET
from disagg_operator.vocabulary import Obj

# The owner of a pool's objects while the pool does not exist: any uid will do for a dry run.
NO_UID = "00000000-0000-0000-0000-000000000000"
# What others forbid may be allowed later; nobody tells the operator when.
DENIED_RETRY_S = 5.0
# A name that belongs to another object may become free, for example when a resource is recreated
# while the children of its predecessor are still being collected.
NAME_TAKEN_RETRY_S = 5.0
_AT_ONCE = 4
_MOST_TOLD = 5
_QUOTA = "exceeded quota"
_WORDS = re.compile(r"^\S+ \S+: \d+ ", re.DOTALL)


async def rehearse(
    kube: Kube, spec: Obj, rendered: Sequence[Obj], children: Children, owners: frozenset[str]
) -> dict[ChildKey, Refused]:
    """Dry-run all objects that would be written, and return the refused ones.

    Each refusal names the field of `spec` that is to blame. Raises KubeError.
    """
    gate = asyncio.Semaphore(_AT_ONCE)

    async def one(obj: Obj) -> None:
        async with gate:
            key = kids.key_of(obj)
            if key not in children.objects and obj["kind"] != ROLE_BINDING.kind:
                await _dry_run_of_new(kube, spec, obj, children, owners)
                return
            live = await kids.owned_or_absent(kube, obj, children, owners)
            # Whether a new binding may be made depends on its Role, which a dry run leaves nowhere.
            if live is not None and obj["kind"] != SECRET.kind and not drift.up_to_date(obj, live):
                await _dry_run(kube, spec, obj)

    errors = await asyncio.gather(*map(one, rendered), return_exceptions=True)
    refused: dict[ChildKey, Refused] = {}
    for obj, error in zip(rendered, errors, strict=True):
        if isinstance(error, Refused):
            refused[kids.key_of(obj)] = error
        elif isinstance(error, NameTaken):
            refused[kids.key_of(obj)] = Refused("NameConflict", str(error), NAME_TAKEN_RETRY_S)
        elif error is not None:
            raise error
    return refused


def in_one(refusals: Iterable[Refused]) -> Refused:
    """Return several refusals as one, in the order of the objects."""
    found = list(refusals)
    retry_s = next((r.retry_s for r in found if r.retry_s is not None), None)
    return Refused(found[0].reason, "; ".join(map(str, found[:_MOST_TOLD])), retry_s)


def refusal_of(error: Exception) -> Refused:
    """Return the refusal that an error means."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, NameTaken):
        return Refused("NameConflict", str(error), NAME_TAKEN_RETRY_S)
    if isinstance(error, Denied):
        return Refused("AdmissionDenied", str(error), DENIED_RETRY_S)
    return Refused("InvalidSpec", str(error))


async def _dry_run_of_new(kube: Kube, spec: Obj, obj: Obj, children: Children, owners: frozenset[str]) -> None:
    """Dry-run an object that does not seem to exist. Raises Refused, KubeError and NameTaken.

    The answer tells whether there is one of that name, which may belong to somebody else: only what
    is stored has a version.
    """
    try:
        answer = await _dry_run(kube, spec, obj)
    except Refused:
        await kids.owned_or_absent(kube, obj, children, owners)
        raise
    if answer["metadata"].get("resourceVersion"):
        await kids.owned_or_absent(kube, obj, children, owners)
    else:
        children.absent.add(kids.key_of(obj))


async def _dry_run(kube: Kube, spec: Obj, obj: Obj) -> Obj:
    with blaming(spec, obj):
        return await kube.apply(drift.stamped(obj), dry_run=True)


@contextlib.contextmanager
def blaming(spec: Obj, obj: Obj) -> Iterator[None]:
    """Turn the errors that an object meets into refusals that name the field of `spec`."""
    try:
        yield
    except Denied as error:
        raise denied(spec, obj, error) from None
    except Invalid as error:
        raise invalid(spec, obj, error) from None


def invalid(spec: Obj, obj: Obj, error: Invalid) -> Refused:
    """Return the refusal of an object that the API server rejects as it is."""
    return Refused("InvalidSpec", _told(spec, obj, error))


def denied(spec: Obj, obj: Obj, error: Denied) -> Refused:
    """Return the refusal of an object that admission control rejects."""
    reason = "QuotaExceeded" if _QUOTA in str(error) else "AdmissionDenied"
    return Refused(reason, _told(spec, obj, error), DENIED_RETRY_S)


def _told(spec: Obj, obj: Obj, error: Invalid | Denied) -> str:
    """Return the fields that are to blame with the words of the API server.

    Of an object that is denied, the causes may not say who denies it, which the message does.
    """
    words = _WORDS.sub("", str(error))  # without the request that is answered
    places = dict.fromkeys((field_to_blame(spec, obj, path), cause) for path, cause in error.fields)
    if not places:
        return f"{field_to_blame(spec, obj)}: {words} ({described(obj)})"
    if isinstance(error, Denied):
        return f"{'; '.join([*dict.fromkeys(path for path, _ in places)][:_MOST_TOLD])}: {words} ({described(obj)})"
    return f"{'; '.join(f'{path}: {cause}' for path, cause in places)} ({described(obj)})"
