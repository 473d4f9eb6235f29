"""The connections between LMDeploy engines, over which decode reads the KV of prefill.

Decode's adapter makes them with calls to both engines (lmdeploy/serve/openai/endpoints/distserve.py
and lmdeploy/pytorch/disagg/conn), once for each start of either engine.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from disagg_adapter.engines.contract import EngineFault
from disagg_adapter.engines.http_client import EngineHttp
from disagg_wire import codes

_HTTP_S = 5.0
_CONNECT_S = 30.0
# RDMA over RoCE (lmdeploy/pytorch/disagg/conn/protocol.py and config.py); there is no TCP.
RDMA_PROTOCOL = 2
_RDMA_CONFIG = {"with_gdr": True, "link_type": 2}


class LmdeployPairs:
    """The engines with which one engine is connected."""

    def __init__(self, http: EngineHttp) -> None:
        self._http = http
        self._lock = asyncio.Lock()
        self._started: dict[str, str] = {}

    def forget(self) -> None:
        """Forget all connections: the engine was started again."""
        self._started.clear()

    def doubt(self, peer: str) -> None:
        """Connect anew before the next transfer from a peer."""
        self._started[peer] = ""

    async def connect(self, own: str, info: Mapping[str, Any], handover: Mapping[str, Any]) -> None:
        """Connect an engine with the one of a hand-over. Raises EngineFault or EngineAnswer.

        Engines are named by their URLs: LMDeploy takes the address for its own messages from them.
        """
        peer = handover["engine_id"]
        async with self._lock:
            if self._started.get(peer) == handover["started"]:
                return
            other = EngineHttp(peer, handover["key"])
            try:
                if self._started.pop(peer, None) is not None:
                    drop = {"engine_id": own, "remote_engine_id": peer}
                    await self._http.send("/distserve/p2p_drop_connect", drop, _HTTP_S)
                theirs = await engine_info(other)
                if theirs["tp_size"] != info["tp_size"]:
                    raise EngineFault(codes.TRANSFER_FAILED, "the engines differ in their tensor parallel size")
                at_peer = await _initialize(other, peer, theirs, own, info)
                at_own = await _initialize(self._http, own, info, peer, theirs)
                await _finish(other, own, at_own)
                await _finish(self._http, peer, at_peer)
            except (KeyError, TypeError, ValueError) as error:
                raise EngineFault(codes.TRANSFER_FAILED, f"LMDeploy's answer is garbled: {error!r}") from None
            finally:
                await other.close()
            self._started[peer] = handover["started"]


async def engine_info(http: EngineHttp) -> dict[str, Any]:
    """Return the sizes of an engine, which come as JSON within JSON."""
    try:
        found = await http.json("/distserve/engine_info", _HTTP_S)
        return dict(json.loads(found) if isinstance(found, str) else found)
    except (TypeError, ValueError):
        raise EngineFault(codes.INTERNAL, "LMDeploy's engine_info is garbled") from None


async def _initialize(
    http: EngineHttp, own: str, info: Mapping[str, Any], peer: str, peer_info: Mapping[str, Any]
) -> dict[str, Any]:
    body = {
        "local_engine_id": own,
        "local_engine_config": info,
        "remote_engine_id": peer,
        "remote_engine_config": peer_info,
        "protocol": RDMA_PROTOCOL,
        "rdma_config": _RDMA_CONFIG,
    }
    return dict(await http.json("/distserve/p2p_initialize", _CONNECT_S, body))


async def _finish(http: EngineHttp, peer: str, initialized: Mapping[str, Any]) -> None:
    body = {
        "protocol": RDMA_PROTOCOL,
        "remote_engine_id": peer,
        "remote_engine_endpoint_info": initialized["engine_endpoint_info"],
        "remote_kvtransfer_endpoint_info": initialized["kvtransfer_endpoint_info"],
    }
    await http.send("/distserve/p2p_connect", body, _CONNECT_S)
