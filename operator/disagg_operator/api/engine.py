"""PURE: The models of spec.model and spec.engine: the served model, and its inference engine."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from disagg_operator.api.base import Arguments, ByteQuantity, Model, SecretRef, list_map
from disagg_operator.api.expressions import (
    contains,
    differ,
    field,
    filled,
    matches,
    none_named,
    one_of,
    present,
    starts_with,
)
from disagg_operator.api.reserved import reserved_environment
from disagg_operator.api.rules import Rule
from disagg_operator.engines import BY_NAME, DEFAULT
from disagg_operator.engines.contract import Engine
from disagg_wire.eviction import Eviction

_HF = r"hf://[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9._-]+"
_PVC = r"pvc://[a-z0-9]([-a-z0-9.]*[a-z0-9])?(/[A-Za-z0-9._/-]*)?"
_FILE = r"file:///[A-Za-z0-9._/-]+"
# It is a word of the engine's command line, where it must be no option and nothing that the kubelet
# would expand, such as $(HF_TOKEN).
_SERVED_NAME = r"^[^-$\x00-\x20][^$\x00-\x1f]*$"
_URI_RULES = (
    Rule(
        message="uri must be hf://org/name, pvc://claim/path or file:///path",
        condition=matches("uri", f"^({_HF}|{_PVC}|{_FILE})$"),
        field="uri",
    ),
    Rule(message="uri must not contain ..", condition=~contains("uri", "/[.][.](/|$)"), field="uri"),
)


class LoraAdapter(Model):
    """A LoRA adapter of the model, which requests choose by its name."""

    rules = _URI_RULES
    name: str = Field(
        min_length=1,
        max_length=128,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$",
        description="The name that clients ask for.",
    )
    uri: str = Field(
        min_length=6,
        max_length=1024,
        description="Where the adapter is: hf://org/name, pvc://claim/path or file:///path in the engine's image.",
    )


class ModelSpec(Model):
    """The model that both pools serve."""

    rules = (
        *_URI_RULES,
        Rule(
            message="revision is for hf:// models only",
            condition=~present("revision") | starts_with("uri", "hf://"),
            field="revision",
        ),
        Rule(
            message="authSecretRef is for hf:// models only",
            condition=~present("authSecretRef") | starts_with("uri", "hf://"),
            field="authSecretRef",
        ),
    )
    uri: str = Field(
        min_length=6,
        max_length=1024,
        description="Where the checkpoint is: hf://org/name, pvc://claim/path or file:///path in the image. "
        "The builtin engine serves safetensors of the Llama family.",
    )
    name: str | None = Field(
        None,
        min_length=1,
        max_length=256,
        description="The name that clients ask for. Default: the last part of the uri.",
        # Not a `pattern` of pydantic's: resources from before the rule must still be readable.
        json_schema_extra={"pattern": _SERVED_NAME},
    )
    revision: str | None = Field(
        None,
        min_length=1,
        max_length=256,
        pattern=r"^[A-Za-z0-9._/-]+$",
        description="Branch, tag or commit of an hf:// model.",
    )
    auth_secret_ref: SecretRef | None = Field(None, description="Token for hf:// models that need one.")
    adapters: list[LoraAdapter] = Field(
        [],
        max_length=64,
        description="LoRA adapters, each served as a model of its own name (vllm, sglang).",
        json_schema_extra=list_map("name"),
    )

    def broken(self) -> Iterator[tuple[str, str]]:
        """Yield the broken rules, a name that is none, and the adapters with that of the model."""
        yield from super().broken()
        if self.name is not None and not re.fullmatch(_SERVED_NAME, self.name):
            yield "name", "must neither begin with - or a space, nor hold $ or a control character"
        if self.served_name in (adapter.name for adapter in self.adapters):
            yield f"adapters[{self.served_name}].name", "is the name of the model itself"

    @property
    def served_name(self) -> str:
        """The name that clients ask for."""
        return self.name or self.uri.rstrip("/").rsplit("/", 1)[-1]


class EnvVar(Model):
    """An environment variable of the workers."""

    rules = (
        Rule(
            message="this variable is set by the operator; use the field of the spec",
            condition=~one_of(field("name"), reserved_environment()),
            field="name",
        ),
    )
    name: str = Field(
        min_length=1,
        max_length=253,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="Name of the variable.",
    )
    value: str = Field("", max_length=4096, description="Its value.")


class PrefixCaching(Model):
    """Reuse of the KV of prompts that begin alike; never between requests of different API keys."""

    enabled: bool = Field(True, description="Keep the KV of finished requests until its blocks are needed.")
    eviction: Eviction = Field(
        "lru",
        description="Which unused block goes first: least recently used, or oldest.",
    )
    host_memory: ByteQuantity | None = Field(
        None,
        description="Host memory per worker for evicted blocks. Default: none.",
    )


def _known(name: str) -> str:
    if name not in BY_NAME:
        raise ValueError(f"must be one of {', '.join(BY_NAME)}")
    return name


EngineName = Annotated[str, AfterValidator(_known), Field(json_schema_extra={"enum": [*BY_NAME]})]


class EngineSpec(Model):
    """The inference engine of both pools."""

    rules = tuple(
        Rule(
            message=f"env of engine.type {engine.name} must not set {', '.join(engine.reserved)}: the operator does",
            condition=differ(field("type"), engine.name) | ~filled("env") | none_named("env", engine.reserved),
            field="env",
        )
        for engine in BY_NAME.values()
        if engine.reserved
    )
    type: EngineName = Field(
        DEFAULT.name,
        description="builtin: the bundled torch worker. The others run their stock image with an adapter beside it; "
        "docs/engines.md says what each can do.",
    )
    image: str | None = Field(
        None,
        min_length=1,
        max_length=512,
        description="Image of the engine. Default: the operator's own release, or the release of the engine that it "
        "was made for.",
    )
    args: Arguments = Field(
        [],
        description="Further arguments of the engine, one word an item. Those that the operator sets are refused.",
    )
    env: list[EnvVar] = Field(
        [],
        max_length=64,
        description="Further environment of the engine, by name.",
        json_schema_extra=list_map("name"),
    )
    lease_seconds: int | None = Field(
        None,
        ge=10,
        le=3600,
        description="How long prefill keeps KV that decode has not read (vllm, sglang). Default: 60.",
    )
    pod_security_level: Literal["Restricted", "Baseline"] = Field(
        "Restricted",
        description="The Pod Security Standard of the workers. Baseline runs the engine as the user of its image, with "
        "a writable root file system; the adapter stays restricted.",
    )
    experimental: bool = Field(
        False,
        description="Let lmdeploy hand KV over from prefill to decode, which is an experiment. Otherwise each of its "
        "workers does both.",
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="Type of weights and KV cache; auto: the checkpoint's.",
    )
    quantization: Literal["none", "int8", "int4", "fp8"] = Field(
        "none",
        description="Weights are rounded to this at load (a checkpoint that is quantised stays as it is); fp8 wants "
        "a GPU.",
    )
    numerics: Literal["Exact", "Fast"] | None = Field(
        None,
        description="Exact: a token depends on its sequence alone. Fast: rounding may depend on the rest of the batch "
        "and on what was decoded or prefilled. Default: Exact on CPUs, Fast on GPUs (builtin).",
    )
    prefix_caching: PrefixCaching = Field(PrefixCaching(), description="Reuse of KV between requests.")
    max_model_len: int | None = Field(
        None,
        ge=16,
        le=16_777_216,
        description="Longest prompt plus output, in tokens. Default: what the model was trained for.",
    )
    block_size_tokens: int = Field(16, ge=1, le=256, description="Tokens of one KV cache block.")
    threads: int = Field(1, ge=1, le=256, description="CPU threads of one worker.")

    @property
    def known(self) -> Engine:
        """The engine as the operator knows it."""
        return BY_NAME[self.type]
