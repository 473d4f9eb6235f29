"""The tokenizer and the chat template of the fake worker: one token for each byte."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

END, USER, ASSISTANT = 0, 1, 2
FIRST_BYTE = 3
VOCAB = FIRST_BYTE + 256
TEMPLATE = (
    "{% for m in messages %}"
    "{{ ('<|assistant|>' if m['role'] == 'assistant' else '<|user|>') + m['content'] }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def tokenizer_json() -> str:
    """Return a tokenizer with one token per byte.

    Nearly every character that is not ASCII takes several tokens.
    """
    # The byte-level alphabet in the order of the bytes: printable Latin-1 characters stand for
    # themselves, the others are represented by code points from 256 on.
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in plain]
    letter = {b: chr(b) for b in plain} | {b: chr(256 + i) for i, b in enumerate(rest)}
    specials = ["<|end|>", "<|user|>", "<|assistant|>"]
    vocab = {s: i for i, s in enumerate(specials)} | {letter[b]: FIRST_BYTE + b for b in range(256)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(s, special=True) for s in specials])
    return str(tokenizer.to_str())
