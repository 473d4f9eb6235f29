"""PURE: what a model weighs, computes and stores; the shapes that are known by name."""

from __future__ import annotations

from dataclasses import dataclass, replace


class PlanError(ValueError):
    """An input is wrong or missing; the message names it."""


@dataclass(frozen=True, slots=True)
class Experts:
    """The mixture in `layers` of the model: `count` routed experts of `width`, `per_token` of which
    a token takes; `shared_width`: of what all tokens take beside them. `bits`: how routed experts
    are stored (MXFP4: 4.25, a scale of 8 bits for 32 weights); None: as the rest.
    """

    layers: int
    count: int
    per_token: int
    width: int
    shared_width: int = 0
    bits: float | None = None

    @property
    def share(self) -> float:
        """Of the routed experts that one token takes."""
        return self.per_token / self.count

    def touched(self, tokens: float) -> float:
        """How many experts of a layer a batch takes on average, if each token is routed evenly and
        by itself: E (1 - (1 - k/E)^B). Real routing prefers some experts, and touches fewer.
        """
        missed: float = (1 - self.share) ** max(1.0, tokens)
        return self.count * (1 - missed)


@dataclass(frozen=True, slots=True)
class Latent:
    """Multi-head latent attention: keys and values of all heads come from one vector of `rank`, and
    one rotary key of `rope` is shared. `nope`, `value`: the rest of a head's key, and its value.
    `query_rank`: of the compressed query; 0: it is not compressed.
    """

    rank: int
    rope: int
    nope: int
    value: int
    query_rank: int = 0


@dataclass(frozen=True, slots=True)
class Window:
    """`layers` of the model attend to, and keep, no more than the last `tokens`."""

    layers: int
    tokens: int


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A decoder.

    `intermediate`: of the layers without experts. `weight_bits`, `kv_bits`: how weights and KV
    cache are stored. `context_tokens`: the most that a request may have; None: not known. With
    latent attention `kv_heads` is 1: no rank has a part of the cache, each has the whole.
    """

    name: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool
    weight_bits: int = 16
    kv_bits: int = 16
    context_tokens: int | None = None
    experts: Experts | None = None
    latent: Latent | None = None
    window: Window | None = None

    # ---- parameters ----

    @property
    def attention_parameters(self) -> int:
        """Of one layer."""
        a = self.latent
        if a is None:
            return self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        query = self.heads * (a.nope + a.rope)
        queries = self.hidden * a.query_rank + a.query_rank * query if a.query_rank else self.hidden * query
        keys = self.hidden * (a.rank + a.rope) + a.rank * self.heads * (a.nope + a.value)
        return queries + keys + self.heads * a.value * self.hidden

    @property
    def base_parameters(self) -> int:
        """What each token is multiplied with: attention, dense layers, shared experts, routers and
        the output head.
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
        """All routed experts."""
        e = self.experts
        return 0 if e is None else e.layers * e.count * 3 * self.hidden * e.width

    @property
    def active_parameters(self) -> int:
        """What one token is multiplied with, with its share of the routed experts.

        As usual, the input embedding is not counted, the output head is.
        """
        e = self.experts
        return self.base_parameters + (0 if e is None else self.routed_parameters * e.per_token // e.count)

    @property
    def parameters(self) -> int:
        return self.base_parameters + self.routed_parameters + (0 if self.tied else self.hidden * self.vocab)

    # ---- bytes ----

    @property
    def routed_bits(self) -> float:
        return self.weight_bits if self.experts is None or self.experts.bits is None else self.experts.bits

    @property
    def routed_bytes(self) -> float:
        """Weights of all routed experts."""
        return self.routed_parameters * self.routed_bits / 8

    @property
    def weight_bytes(self) -> float:
        """All weights; embeddings and norms stay at 16 bits."""
        embedding = 0 if self.tied else self.hidden * self.vocab
        return self.base_parameters * self.weight_bits / 8 + self.routed_bytes + 2 * embedding

    @property
    def _layer_kv_bytes(self) -> float:
        a = self.latent
        elements = 2 * self.kv_heads * self.head_dim if a is None else a.rank + a.rope
        return elements * self.kv_bits / 8

    @property
    def kv_bytes_per_token(self) -> float:
        """All layers' cache of one token: 2 * layers * kv_heads * head_dim * bytes; latent: layers
        * (rank + rope) * bytes.
        """
        return self.layers * self._layer_kv_bytes

    def kv_bytes(self, tokens: float) -> float:
        """Of a sequence so long; layers with a window keep no more than that."""
        w = self.window
        if w is None:
            return tokens * self.kv_bytes_per_token
        return (tokens * (self.layers - w.layers) + min(tokens, w.tokens) * w.layers) * self._layer_kv_bytes

    # ---- arithmetic ----

    @property
    def token_flops(self) -> float:
        """Of one token through the matrices: a multiplication and an addition for each parameter
        that it takes.
        """
        return 2 * self.active_parameters

    @property
    def pair_flops(self) -> float:
        """Of one token attending to one earlier token while a prompt is computed, all layers: q.k
        and p.v. A latent cache is first made into keys and values of each head (which counts as
        weights).
        """
        a = self.latent
        width = 2 * self.head_dim if a is None else a.nope + a.rope + a.value
        return 2 * self.layers * self.heads * width

    @property
    def decode_pair_flops(self) -> float:
        """The same in a decode step.

        With latent attention the query is taken into the latent space instead (the absorbed form),
        where each head multiplies with the whole cached vector.
        """
        a = self.latent
        return self.pair_flops if a is None else 2 * self.layers * self.heads * (2 * a.rank + a.rope)

    def at_bits(self, weight_bits: int | None, kv_bits: int) -> ModelShape:
        """The same with weights and cache stored otherwise; None: the weights stay as the
        checkpoint has them.
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
    name: str, layers: int, hidden: int, intermediate: int, heads: int, vocab: int, context_tokens: int | None, experts: Experts, bits: int,
    query_rank: int = 1536,
) -> ModelShape:  # fmt: skip
    """DeepSeek's attention; all of its models, and Kimi K2, have a latent vector of 512 and a
    rotary key of 64.
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


# Shapes as in the published config.json of each model, huggingface.co/ORG/NAME:
# meta-llama/Llama-3.1-8B and -70B, Llama-3.3-70B, Llama-2-70b-hf, Llama-4-Scout-17B-16E and
# -Maverick-17B-128E; mistralai/Mistral-7B-v0.3, Mixtral-8x7B-v0.1 and -8x22B-v0.1; Qwen/Qwen2.5-7B,
# -32B and -72B, Qwen3-8B, -32B, -30B-A3B, -235B-A22B and -Coder-480B-A35B; deepseek-ai/DeepSeek-V3,
# -V3.1, -R1 and -V2-Lite; moonshotai/Kimi-K2-Instruct and -Thinking; openai/gpt-oss-20b and -120b;
# zai-org/GLM-4.5, -4.5-Air and -4.6. Embeddings are not tied in any. The context is left out where
# variants differ in it. Bits are those of the published checkpoint: DeepSeek and Kimi K2 FP8,
# gpt-oss MXFP4 and Kimi K2 Thinking INT4 (a 16-bit scale for 32 weights) in the routed experts
# alone.
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
        _shape("gpt-oss-20b", 24, 2880, 2880, 64, 8, 64, 201088, 131072, Experts(24, 32, 4, 2880, bits=4.25), window=Window(12, 128)),
        _shape("gpt-oss-120b", 36, 2880, 2880, 64, 8, 64, 201088, 131072, Experts(36, 128, 4, 2880, bits=4.25), window=Window(18, 128)),
        _shape("glm-4.5", 92, 5120, 12288, 96, 8, 128, 151552, 131072, Experts(89, 160, 8, 1536, 1536)),
        _shape("glm-4.6", 92, 5120, 12288, 96, 8, 128, 151552, 202752, Experts(89, 160, 8, 1536, 1536)),
        _shape("glm-4.5-air", 46, 4096, 10944, 96, 8, 128, 151552, 131072, Experts(45, 128, 8, 1408, 1408)),
        _shape("llama-4-scout-17b-16e", 48, 5120, 16384, 40, 8, 128, 202048, None, Experts(48, 16, 1, 8192, 8192), window=Window(36, 8192)),
        _shape(
            "llama-4-maverick-17b-128e", 48, 5120, 16384, 40, 8, 128, 202048, 1_048_576, Experts(24, 128, 1, 8192, 8192),
            window=Window(36, 8192),
        ),
        _deepseek_v3("deepseek-v3"),
        _deepseek_v3("deepseek-v3.1"),
        _deepseek_v3("deepseek-r1"),
        _latent("deepseek-v2-lite", 27, 2048, 10944, 16, 102400, 163_840, Experts(26, 64, 6, 1408, 2816), 16, query_rank=0),
        _kimi_k2("kimi-k2", 8, None, None),
        _kimi_k2("kimi-k2-thinking", 16, 4.5, 262_144),
    )
}  # fmt: skip


_SUFFIXES = ("-instruct", "-base", "-chat", "-hf", "-it", "-v0.3", "-v0.1", "-2507", "-0324", "-0528", "-0905")


def named(name: str) -> ModelShape | None:
    """A known shape by a Hugging Face name, whatever organisation and variant:
    meta-llama/Llama-3.1-70B-Instruct, or that in FP8: Qwen/Qwen3-235B-A22B-Instruct-2507-FP8.
    """
    short = name.rsplit("/", 1)[-1].lower().removeprefix("meta-")
    fp8 = short.endswith("-fp8")
    short = short.removesuffix("-fp8")
    if short.startswith("qwen3-"):  # of the others that think, the weights are stored otherwise
        short = short.replace("-thinking", "")
    while (cut := next((s for s in _SUFFIXES if short.endswith(s)), None)) is not None:
        short = short.removesuffix(cut)
    found = KNOWN.get(short)
    return found.at_bits(8, found.kv_bits) if found is not None and fp8 else found
