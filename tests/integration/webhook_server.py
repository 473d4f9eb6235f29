"""Somebody's admission webhook: a real server over TLS, and its ValidatingWebhookConfiguration."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from aiohttp import web
from tests.certificates import certificate
from tests.connections import serving
from tests.ports import free_port

from disagg_operator.kube.client import HttpKube
from disagg_operator.kube.errors import NotFound
from disagg_operator.vocabulary import Obj

CONFIGURATIONS = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations"
# Any status and details that a webhook may answer a refused request with.
Denial = dict[str, Any]


class Webhook:
    """Judges writes of Deployments in one namespace by `deny`, which returns a denial or None.

    While it is not `listening`, nobody answers at its address, and the API server admits nothing.
    """

    def __init__(self, kube: HttpKube, namespace: str, folder: Path) -> None:
        self.deny: Callable[[Obj, bool], Denial | None] = lambda obj, dry_run: None
        self.asked = 0
        self._kube = kube
        self._namespace = namespace
        self._certificate = certificate(folder, "webhook")
        self._port = free_port()

    @contextlib.asynccontextmanager
    async def configured(self) -> AsyncIterator[None]:
        """Let the API server ask the webhook until the block ends."""
        rule = {"apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["*"], "resources": ["deployments"]}
        authority = base64.b64encode(self._certificate.pem.encode()).decode()
        hook = {
            "name": "policy.example.com", "rules": [rule], "failurePolicy": "Fail", "sideEffects": "None",
            "clientConfig": {"url": f"https://127.0.0.1:{self._port}/", "caBundle": authority},
            "admissionReviewVersions": ["v1"], "timeoutSeconds": 5,
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": self._namespace}},
        }  # fmt: skip
        meta = {"name": self._namespace}
        await self._kube._call("POST", CONFIGURATIONS, body={"metadata": meta, "webhooks": [hook]})
        try:
            yield
        finally:
            with contextlib.suppress(NotFound):
                await self._kube._call("DELETE", f"{CONFIGURATIONS}/{self._namespace}")

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Answer the API server until the block ends."""
        async with serving(web.post("/", self._review), port=self._port, tls=self._certificate.server_context()):
            yield

    async def _review(self, request: web.Request) -> web.Response:
        self.asked += 1
        asked = (await request.json())["request"]
        denial = self.deny(asked["object"] or {}, bool(asked.get("dryRun")))
        answer: Obj = {"uid": asked["uid"], "allowed": denial is None}
        answer |= {} if denial is None else {"status": denial}
        return web.json_response({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": answer})
