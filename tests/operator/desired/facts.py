"""The facts that tests render with: both pools exist, and the cluster key is to be created."""

from __future__ import annotations

from disagg_operator.desired import Facts

UID = "11111111-2222-3333-4444-555555555555"
POOL_UIDS = {"prefill": "aaaaaaaa-0000-0000-0000-000000000001", "decode": "aaaaaaaa-0000-0000-0000-000000000002"}
FACTS = Facts(uid=UID, replicas={"prefill": 1, "decode": 2}, pool_uids=POOL_UIDS, cluster_key="ab" * 32)
