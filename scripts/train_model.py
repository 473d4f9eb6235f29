"""Train the small Llama checkpoint in models/stdlib-llama from text that any Python installation
has.

The text is the standard library's own docstrings, as prose and as short question-and-answer chats,
so that the model's answers are recognizable English about Python and end by themselves. It knows
nothing else. Seed, data and schedule are fixed, so one version of Python and torch on one kind of
CPU results in one checkpoint. 600 steps take about half an hour on one core.

Usage: train_model.py [--steps 600] [--out models/stdlib-llama]
"""

from __future__ import annotations

import argparse
import ast
import inspect
import json
import math
import os
import random
import sysconfig
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

SEED = 20260
END, USER, ASSISTANT = "<|end|>", "<|user|>", "<|assistant|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ '<|assistant|>' + message['content'] + '<|end|>' }}"
    "{% else %}{{ '<|user|>' + message['content'] }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
CONTEXT = 256
BATCH = 16


def documented_names() -> list[tuple[str, str]]:
    """Return (qualified name, docstring) of everything documented in the standard library's
    sources.

    Nothing is imported.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    found: dict[str, str] = {}
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if any(
            part in {"test", "tests", "site-packages", "idlelib", "lib2to3", "dist-packages", "turtledemo"}
            for part in relative.parts
        ):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        module = ".".join(relative.with_suffix("").parts).removesuffix(".__init__")
        stack: list[tuple[str, ast.AST]] = [(module, tree)]
        while stack:
            name, node = stack.pop()
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                if doc := ast.get_docstring(node):
                    found[name] = inspect.cleandoc(doc)
                stack += [
                    (f"{name}.{c.name}", c)
                    for c in node.body
                    if isinstance(c, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
                ]
    return sorted(found.items())


def chats(docs: list[tuple[str, str]], rng: random.Random) -> list[str]:
    """Return question-and-answer pairs: a name and the first paragraph of its docstring."""
    out = []
    for name, doc in docs:
        answer = " ".join(doc.split("\n\n")[0].split())
        if 20 <= len(answer) <= 400 and "_" not in name.split(".")[-1][:1]:
            short = ".".join(name.split(".")[-2:])
            question = rng.choice(["What does {} do?", "What is {}?", "Explain {}.", "Tell me about {}."]).format(short)
            out.append(f"{USER}{question}{ASSISTANT}{answer}{END}")
    greeting = "Hello! I am a small language model that has read the documentation of Python's standard library."
    out += [
        f"{USER}{q}{ASSISTANT}{greeting}{END}"
        for q in ("Hello", "Hi", "Hello!", "Who are you?", "Say hello.")
        for _ in range(20)
    ]
    return out


def train_tokenizer(texts: list[str], out: Path) -> Tokenizer:
    """Train a byte-level BPE of 2,048 tokens, and save it as Hugging Face lays it out."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2048,
        special_tokens=[END, USER, ASSISTANT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(out / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "pad_token": END,
        "model_max_length": 2048,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n")
    return tokenizer


def save(model: LlamaForCausalLM, out: Path) -> None:
    """Save bf16 weights, config and generation config; each file is replaced whole."""
    tensors = {
        n: p.detach().to(torch.bfloat16).contiguous() for n, p in model.state_dict().items() if n != "lm_head.weight"
    }
    save_file(tensors, out / "model.safetensors.tmp", metadata={"format": "pt"})
    # safetensors creates it unreadable for other users, including that of a worker.
    (out / "model.safetensors.tmp").chmod(0o644)
    os.replace(out / "model.safetensors.tmp", out / "model.safetensors")
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "bfloat16",
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": None,
        "eos_token_id": 0,
        "pad_token_id": 0,
        "tie_word_embeddings": True,
        "rope_theta": 10000.0,
    } | {
        k: getattr(model.config, k)
        for k in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
            "max_position_embeddings",
            "rms_norm_eps",
            "initializer_range",
        )
    }
    (out / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    (out / "generation_config.json").write_text(json.dumps({"eos_token_id": 0, "pad_token_id": 0}, indent=1) + "\n")


def train(model: LlamaForCausalLM, data: torch.Tensor, steps: int, out: Path) -> None:
    """Train for `steps` steps with AdamW, warm-up and cosine decay; save a checkpoint every 100
    steps.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.95), weight_decay=0.1)
    generator = torch.Generator().manual_seed(SEED)
    for step in range(steps):
        # Some sequences are long, so that positions up to the limit have been seen.
        context, batch = (1024, BATCH // 4) if step % 12 == 11 else (CONTEXT, BATCH)
        rate = 2e-3 * min(1.0, (step + 1) / 100) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        at = torch.randint(len(data) - context - 1, (batch,), generator=generator)
        x = torch.stack([data[i : i + context] for i in at])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(input_ids=x, labels=x).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 49:
            print(f"step {step + 1}/{steps}  loss {loss.item():.3f}", flush=True)
        if step % 100 == 99:
            save(model, out)
    save(model, out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "models/stdlib-llama")
    arguments = parser.parse_args()
    rng = random.Random(SEED)
    torch.manual_seed(SEED)
    arguments.out.mkdir(parents=True, exist_ok=True)
    docs = documented_names()
    prose = [f"{name}\n\n{doc}{END}" for name, doc in docs]
    pairs = chats(docs, rng)
    tokenizer = train_tokenizer(prose + pairs, arguments.out)
    texts = prose + pairs * 3
    rng.shuffle(texts)
    data = torch.tensor([i for text in texts for i in tokenizer.encode(text).ids])
    config = LlamaConfig(
        vocab_size=2048,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    n_parameters = sum(p.numel() for p in model.parameters())
    print(f"{len(docs)} docstrings, {len(pairs)} chats, {len(data)} tokens, {n_parameters} parameters", flush=True)
    train(model, data, arguments.steps, arguments.out)


if __name__ == "__main__":
    main()
