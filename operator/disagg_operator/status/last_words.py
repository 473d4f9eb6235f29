"""PURE: The cause of a container's end, as far as the last lines of its log tell it.

The table holds one class of cause for each reason, with the words of the engines, of Python, of the
loader of shared libraries and of the kubelet. A new engine adds words to a class, and no class.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from disagg_wire.problems import (
    CONNECTOR_MISSING,
    ENGINE_OUT_OF_MEMORY,
    MISSING_LIBRARY,
    PORT_IN_USE,
    UNKNOWN_FLAG,
    WEIGHTS_REFUSED,
)

POD_SECURITY_LEVEL = "PodSecurityLevel"
NO_ACCELERATOR = "NoAccelerator"
READ_ONLY = "ReadOnlyFileSystem"
# The part of a log that a message quotes.
MAX_TAIL_CHARS = 1280
MAX_LINE_CHARS = 300

# A line that matches several of these is explained by the first.
_CAUSES: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        PORT_IN_USE,
        (r"address already in use", r"EADDRINUSE", r"port \d+ is (already )?(in use|occupied|not available)"),
    ),
    (
        UNKNOWN_FLAG,
        (
            r"unrecognized arguments?:",
            r"error: argument .*(invalid choice|invalid .* value|expected .*argument|not allowed with)",
            r"ambiguous option:",
            r"error: the following arguments are required",
            r"no such option:",
            r"unexpected keyword argument '.*_config'",
        ),
    ),
    (
        CONNECTOR_MISSING,
        (
            r"unsupported connector type",
            r"(no module named|cannot import name|failed to import|unknown) .*connector",
            r"connector .*(is not|isn't) (registered|supported|available|found)",
            r"unknown (disaggregation )?transfer backend",
        ),
    ),
    (
        MISSING_LIBRARY,
        (
            r"(nixl|rixl|mooncake|lmcache|ucx) is not (available|installed)",
            r"no module named ",
            r"cannot open shared object file",
            r"undefined symbol:",
            r"version `[^']+' not found",
            r"please install .*(nixl|mooncake|transfer engine)",
        ),
    ),
    (
        ENGINE_OUT_OF_MEMORY,
        (
            r"out ?of ?memory",
            r"\bOOM\b",
            r"cannot allocate memory",
            r"not enough memory",
            r"no available memory for the cache blocks",
            r"free memory on device .* is less than",
            r"larger than the (available KV cache memory|maximum number of tokens that can be stored)",
            r"(try|by) increasing `?gpu_memory_utilization",
            r"^MemoryError\b",
        ),
    ),
    (
        NO_ACCELERATOR,
        (
            r"no cuda gpus are available",
            r"no cuda-capable device",
            r"found no nvidia driver",
            r"failed to infer device type",
            r"cuda driver version is insufficient",
        ),
    ),
    (
        WEIGHTS_REFUSED,
        (
            r"cannot find any model weights",
            r"no safetensors? (weights|files?) found",
            r"model architectures? .*(are|is) not supported",
            r"(safetensor|safetensors_rust)\w*error",
            r"error while deserializing header",
            r"header ?too ?(large|small)|incomplete ?metadata|metadata ?incomplete ?buffer",
            r"size mismatch for|shape mismatch|attempted to load weight",
            r"there is no module or parameter named",
            r"could not find checkpoint files",
            r"weights were not initialized from checkpoint",
            r"(does not|doesn't) (appear to )?have a file named",
            r"is not a (local folder|valid model identifier)",
            r"invalid repository id or local directory",
            r"unrecognized model in",
            r"(repository not found|gatedrepoerror|is gated|cannot access gated repo)",
            r"(checkpoint|weights?) .*(corrupt|truncated|unsupported)",
            r"unknown quantization method|quantization method .*(not supported|does not match)",
            r"modelerror: ",
        ),
    ),
    (
        POD_SECURITY_LEVEL,
        (
            r"runAsNonRoot and image",
            r"permission denied",
            r"operation not permitted",
        ),
    ),
    (READ_ONLY, (r"read-only file system",)),
)  # fmt: skip
_TABLE = tuple((reason, re.compile("|".join(words), re.IGNORECASE)) for reason, words in _CAUSES)
_ESCAPES = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)?|[@-Z\\-_])")
# A warning or a line of information tells what did not stop the process.
_HARMLESS = re.compile(r"^\W*(\(\w+[^)]*\)\s*)?\[?(WARNING|WARN|INFO|DEBUG)\b")


@dataclass(frozen=True, slots=True)
class Cause:
    """A known class of cause, and the line that names it."""

    reason: str
    line: str


def cleaned(text: str, limit: int = MAX_TAIL_CHARS) -> str:
    """Return the end of a text without empty lines and without characters that control a terminal.

    It starts at the beginning of a line, unless the last line alone is longer than the limit.
    """
    shown = "".join(_shown(c) for c in _ESCAPES.sub("", text).replace("\r\n", "\n").replace("\r", "\n"))
    kept = "\n".join(line.rstrip() for line in shown.split("\n") if line.strip())
    if len(kept) <= limit:
        return kept
    tail = kept[-limit:]
    whole_from = 0 if kept[-limit - 1] == "\n" else tail.find("\n") + 1
    return tail[whole_from:]


def _shown(character: str) -> str:
    if character == "\n":
        return character
    if character == "\t":
        return " "
    return "" if unicodedata.category(character).startswith("C") else character


def cause_of(text: str) -> Cause | None:
    """Return the cause that the last lines of a log name, or None.

    The last line that names one counts: what a process says before it goes on is not why it ended.
    """
    for line in reversed(cleaned(text, limit=len(text)).split("\n")):
        if _HARMLESS.match(line):
            continue
        for reason, words in _TABLE:
            if words.search(line):
                return Cause(reason, line.strip()[-MAX_LINE_CHARS:])
    return None
