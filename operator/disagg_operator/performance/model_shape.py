"""PURE: The shape of a model, which determines its memory and arithmetic, and the known shapes."""

from __future__ import annotations

from dataclasses import dataclass, replace


class PlanError(ValueError):
    """Raised when an input of a plan is invalid or missing; the message names the input."""


@dataclass(frozen=True, slots=True)
class Experts:
    """The mixture of experts of a model."""

    layers: int
    """The number of layers that have experts."""
    count: int
    """The number of routed experts of a layer."""
    per_token: int
    """The number of routed experts that a token uses."""
    width: int
    """The width of a routed expert."""
    shared_width: int = 0
    """The total width of the shared experts, which all tokens use."""
    bits: float | None = None
    """The bits of a weight of routed experts; None: the same as in the rest of the model.

    MXFP4 has 4.25, because 32 weights share a scale of 8 bits.
    """

    @property
    def share(self) -> float:
        """The share of the routed experts that one token uses."""
        return self.per_token / self.count

    def touched(self, tokens: float) -> float:
        """Return the average number of experts of a layer that a batch of tokens uses.

        It is E (1 - (1 - k/E)^B) if tokens are routed uniformly and independently. Real routing
        prefers some experts and uses fewer.
        """
        missed: float = (1 - self.share) ** max(1.0, tokens)
        return self.count * (1 - missed)


@dataclass(frozen=True, slots=True)
class Latent:
    """The dimensions of multi-head latent attention.

    The keys and values of all heads are computed from one latent vector, and all heads share one
    rotary key.
    """

    rank: int
    """The dimension of the latent vector."""
    rope: int
    """The dimension of the rotary key."""
    nope: int
    """The dimension of the rest of a head's key."""
    value: int
    """The dimension of a head's value."""
    query_rank: int = 0
    """The dimension of the compressed query; 0: queries are not compressed."""


@dataclass(frozen=True, slots=True)
class Window:
    """A sliding window: some layers attend to the last tokens only, and store no others."""

    layers: int
    """The number of layers that have the window."""
    tokens: int
    """The number of tokens in the window."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The shape of a decoder."""

    name: str
    layers: int
    hidden: int
    """The dimension of the hidden state."""
    intermediate: int
    """The width of the feed-forward network in layers without experts."""
    heads: int
    """The number of query heads."""
    kv_heads: int
    """The number of KV heads. With latent attention it is 1: every rank has the whole cache."""
    head_dim: int
    """The dimension of a head."""
    vocab: int
    """The number of tokens in the vocabulary."""
    tied: bool
    """Whether the output head shares the weights of the input embedding."""
    weight_bits: int = 16
    kv_bits: int = 16
    """The bits of an element of the KV cache."""
    context_tokens: int | None = None
    """The maximum number of tokens of a request; None: not known."""
    experts: Experts | None = None
    latent: Latent | None = None
    window: Window | None = None

    # ---- parameters ----

    @property
    def attention_parameters(self) -> int:
        """The attention parameters of one layer."""
        a = self.latent
        if a is None:
            return self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        query = self.heads * (a.nope + a.rope)
        queries = self.hidden * a.query_rank + a.query_rank * query if a.query_rank else self.hidden * query
        keys = self.hidden * (a.rank + a.rope) + a.rank * self.heads * (a.nope + a.value)
        return queries + keys + self.heads * a.value * self.hidden

    @property
    def base_parameters(self) -> int:
        """The number of parameters that every token is multiplied by.

        They are those of attention, dense layers, shared experts, routers and the output head.
        """
        e = self.experts
        dense = 3 * self.hidden * self.intermediate
        if e is None:
            return self.layers * (self.attention_parameters + dense) + self.hidden * self.vocab
        router = self.hidden * e.count if e.count > 1 else 0
        mixed = 3 * self.hidden * e.shared_width + router
        return (
            self.layers * self.attention_parameters
            + (self.layers - e.layers) * dense
            + e.layers * mixed
            + self.hidden * self.vocab
        )

    @property
    def routed_parameters(self) -> int:
        """The number of parameters of all routed experts."""
        e = self.experts
        return 0 if e is None else e.layers * e.count * 3 * self.hidden * e.width

    @property
    def active_parameters(self) -> int:
        """The number of parameters that one token is multiplied by, including its routed experts.

        As usual, the output head is counted, and the input embedding is not.
        """
        e = self.experts
        return self.base_parameters + (0 if e is None else self.routed_parameters * e.per_token // e.count)

    @property
    def parameters(self) -> int:
        """The number of parameters of the model."""
        return self.base_parameters + self.routed_parameters + (0 if self.tied else self.hidden * self.vocab)

    # ---- bytes ----

    @property
    def routed_bits(self) -> float:
        """The bits of a weight of routed experts."""
        return self.weight_bits if self.experts is None or self.experts.bits is None else self.experts.bits

    @property
    def routed_bytes(self) -> float:
        """The size in bytes of the weights of all routed experts."""
        return self.routed_parameters * self.routed_bits / 8

    @property
    def weight_bytes(self) -> float:
        """The size in bytes of all weights. An untied input embedding stays at 16 bits."""
        embedding = 0 if self.tied else self.hidden * self.vocab
        return self.base_parameters * self.weight_bits / 8 + self.routed_bytes + 2 * embedding

    @property
    def _layer_kv_bytes(self) -> float:
        a = self.latent
        elements = 2 * self.kv_heads * self.head_dim if a is None else a.rank + a.rope
        return elements * self.kv_bits / 8

    @property
    def kv_bytes_per_token(self) -> float:
        """The size in bytes of the KV of one token in all layers.

        It is 2 * layers * kv_heads * head_dim * bytes, or with latent attention layers * (rank +
        rope) * bytes.
        """
        return self.layers * self._layer_kv_bytes

    def kv_bytes(self, tokens: float) -> float:
        """Return the size in bytes of the KV of a sequence.

        A layer with a window stores no more than its window.
        """
        w = self.window
        if w is None:
            return tokens * self.kv_bytes_per_token
        return (tokens * (self.layers - w.layers) + min(tokens, w.tokens) * w.layers) * self._layer_kv_bytes

    # ---- arithmetic ----

    @property
    def pair_flops(self) -> float:
        """The FLOP of one token that attends to one earlier token in prefill, in all layers.

        They are those of q.k and p.v. A latent cache is first expanded into the keys and values of
        each head, which counts as multiplying by weights.
        """
        a = self.latent
        width = 2 * self.head_dim if a is None else a.nope + a.rope + a.value
        return 2 * self.layers * self.heads * width

    @property
    def decode_pair_flops(self) -> float:
        """The FLOP of one token that attends to one earlier token in a decode step, in all layers.

        With latent attention the query is projected into the latent space instead (the absorbed
        form), where each head multiplies by the whole cached vector.
        """
        a = self.latent
        return self.pair_flops if a is None else 2 * self.layers * self.heads * (2 * a.rank + a.rope)

    def at_bits(self, weight_bits: int | None, kv_bits: int) -> ModelShape:
        """Return the same shape with other bits of weights and cache.

        With `weight_bits=None` the weights stay as they are in the checkpoint.
        """
        if weight_bits is None:
            return replace(self, kv_bits=kv_bits)
        experts = None if self.experts is None else replace(self.experts, bits=None)
        return replace(self, weight_bits=weight_bits, kv_bits=kv_bits, experts=experts)


def _shape(
    name: str,
    layers: int,
    hidden: int,
    intermediate: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    vocab: int,
    context_tokens: int | None = None,
    experts: Experts | None = None,
    bits: int = 16,
    window: Window | None = None,
) -> ModelShape:
    return ModelShape(
        name,
        layers,
        hidden,
        intermediate,
        heads,
        kv_heads,
        head_dim,
        vocab,
        False,
        bits,
        16,
        context_tokens,
        experts,
        None,
        window,
    )


def _latent(
    name: str,
    layers: int,
    hidden: int,
    intermediate: int,
    heads: int,
    vocab: int,
    context_tokens: int | None,
    experts: Experts,
    bits: int,
    query_rank: int = 1536,
) -> ModelShape:
    """Return a shape with the latent attention of DeepSeek.

    All of its models, and Kimi K2, have a latent vector of 512 and a rotary key of 64.
    """
    attention = Latent(512, 64, 128, 128, query_rank)
    return ModelShape(
        name, layers, hidden, intermediate, heads, 1, 192, vocab, False, bits, 16, context_tokens, experts, attention
    )


def _deepseek_v3(name: str, context_tokens: int = 163_840) -> ModelShape:
    return _latent(name, 61, 7168, 18432, 128, 129280, context_tokens, Experts(58, 256, 8, 2048, 2048), 8)


def _kimi_k2(name: str, bits: int, expert_bits: float | None, context_tokens: int | None) -> ModelShape:
    return _latent(
        name, 61, 7168, 18432, 64, 163840, context_tokens, Experts(60, 384, 8, 2048, 2048, expert_bits), bits
    )


# The shapes are those of the published config.json of each model, huggingface.co/ORG/NAME:
# meta-llama/Llama-3.1-8B and -70B, Llama-3.3-70B, Llama-2-70b-hf, Llama-4-Scout-17B-16E and
# -Maverick-17B-128E; mistralai/Mistral-7B-v0.3, Mixtral-8x7B-v0.1 and -8x22B-v0.1; Qwen/Qwen2.5-7B,
# -32B and -72B, Qwen3-8B, -32B, -30B-A3B, -235B-A22B and -Coder-480B-A35B; deepseek-ai/DeepSeek-V3,
# -V3.1, -R1 and -V2-Lite; moonshotai/Kimi-K2-Instruct and -Thinking; openai/gpt-oss-20b and -120b;
# zai-org/GLM-4.5, -4.5-Air and -4.6. No model has tied embeddings. The context is left out if
# variants differ in it. The bits are those of the published checkpoint: DeepSeek and Kimi K2 have
# FP8; gpt-oss has MXFP4 and Kimi K2 Thinking INT4 (a 16-bit scale for 32 weights), both in the
# routed experts only.
KNOWN = {
    shape.name: shape
    for shape in (
        _shape("llama-3.1-8b", 32, 4096, 14336, 32, 8, 128, 128256, 131072),
        _shape("llama-3.1-70b", 80, 8192, 28672, 64, 8, 128, 128256, 131072),
        _shape("llama-2-70b", 80, 8192, 28672, 64, 8, 128, 32000, 4096),
        _shape("mistral-7b", 32, 4096, 14336, 32, 8, 128, 32768, 32768),
        _shape("qwen2.5-7b", 28, 3584, 18944, 28, 4, 128, 152064),
        _shape("qwen2.5-32b", 64, 5120, 27648, 40, 8, 128, 152064),
        _shape("qwen2.5-72b", 80, 8192, 29568, 64, 8, 128, 152064),
        _shape("qwen3-8b", 36, 4096, 12288, 32, 8, 128, 151936),
        _shape("qwen3-32b", 64, 5120, 25600, 64, 8, 128, 151936),
        _shape("llama-3.3-70b", 80, 8192, 28672, 64, 8, 128, 128256, 131072),
        _shape("mixtral-8x7b", 32, 4096, 14336, 32, 8, 128, 32000, 32768, Experts(32, 8, 2, 14336)),
        _shape("mixtral-8x22b", 56, 6144, 16384, 48, 8, 128, 32768, 65536, Experts(56, 8, 2, 16384)),
        _shape("qwen3-30b-a3b", 48, 2048, 6144, 32, 4, 128, 151936, None, Experts(48, 128, 8, 768)),
        _shape("qwen3-235b-a22b", 94, 4096, 12288, 64, 4, 128, 151936, None, Experts(94, 128, 8, 1536)),
        _shape("qwen3-coder-480b-a35b", 62, 6144, 8192, 96, 8, 128, 151936, 262144, Experts(62, 160, 8, 2560)),
        _shape("gpt-oss-20b", 24, 2880, 2880, 64, 8, 64, 201088, 131072, Experts(24, 32, 4, 2880, bits=4.25),
               window=Window(12, 128)),
        _shape("gpt-oss-120b", 36, 2880, 2880, 64, 8, 64, 201088, 131072, Experts(36, 128, 4, 2880, bits=4.25),
               window=Window(18, 128)),
        _shape("glm-4.5", 92, 5120, 12288, 96, 8, 128, 151552, 131072, Experts(89, 160, 8, 1536, 1536)),
        _shape("glm-4.6", 92, 5120, 12288, 96, 8, 128, 151552, 202752, Experts(89, 160, 8, 1536, 1536)),
        _shape("glm-4.5-air", 46, 4096, 10944, 96, 8, 128, 151552, 131072, Experts(45, 128, 8, 1408, 1408)),
        _shape("llama-4-scout-17b-16e", 48, 5120, 16384, 40, 8, 128, 202048, None, Experts(48, 16, 1, 8192, 8192),
               window=Window(36, 8192)),
        _shape("llama-4-maverick-17b-128e", 48, 5120, 16384, 40, 8, 128, 202048, 1_048_576,
               Experts(24, 128, 1, 8192, 8192), window=Window(36, 8192)),
        _deepseek_v3("deepseek-v3"),
        _deepseek_v3("deepseek-v3.1"),
        _deepseek_v3("deepseek-r1"),
        _latent("deepseek-v2-lite", 27, 2048, 10944, 16, 102400, 163_840, Experts(26, 64, 6, 1408, 2816), 16,
                query_rank=0),
        _kimi_k2("kimi-k2", 8, None, None),
        _kimi_k2("kimi-k2-thinking", 16, 4.5, 262_144),
    )
}  # fmt: skip


_SUFFIXES = ("-instruct", "-base", "-chat", "-hf", "-it", "-v0.3", "-v0.1", "-2507", "-0324", "-0528", "-0905")


def named(name: str) -> ModelShape | None:
    """Return a known shape by a Hugging Face name, for any organisation and variant, or None.

    Examples are meta-llama/Llama-3.1-70B-Instruct and, with the shape in FP8,
    Qwen/Qwen3-235B-A22B-Instruct-2507-FP8.
    """
    short = name.rsplit("/", 1)[-1].lower().removeprefix("meta-")
    fp8 = short.endswith("-fp8")
    short = short.removesuffix("-fp8")
    # The thinking variants of other families store their weights differently.
    if short.startswith("qwen3-"):
        short = short.replace("-thinking", "")
    while (cut := next((s for s in _SUFFIXES if short.endswith(s)), None)) is not None:
        short = short.removesuffix(cut)
    found = KNOWN.get(short)
    return found.at_bits(8, found.kv_bits) if found is not None and fp8 else found
