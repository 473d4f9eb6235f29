"""The world on a real API server, with the CRDs."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
from tests.integration.apiserver import ApiServer
from tests.operator.controller.real_world import RealWorld


@pytest.fixture
async def world(crd_server: ApiServer, crd_client: httpx.Client) -> AsyncIterator[RealWorld]:
    opened = await RealWorld(crd_server).open()
    yield opened
    await opened.close()
