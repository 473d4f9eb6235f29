"""PURE: The models of spec.router.upstream."""

from __future__ import annotations

from pydantic import Field

from disagg_operator.api.base import Model

# Without user and password: everybody who may read the resource would see them.
_HOST = r"([A-Za-z0-9_][-._A-Za-z0-9]*|\[[0-9A-Fa-f:.]+\])"
_URL = rf"^https?://{_HOST}(:[0-9]{{1,5}})?(/[-._~A-Za-z0-9/]*)?$"


class UpstreamSpec(Model):
    """A service beside this deployment."""

    url: str = Field(
        max_length=1024,
        pattern=_URL,
        description="Where it serves the OpenAI API, without /v1, such as http://vllm.prod:8000. It gets the key of "
        "the client, and must know the model by the same name.",
    )
    percent: int = Field(
        ge=0,
        le=100,
        description="Percentage of the requests that go there; the pools answer the others.",
    )
