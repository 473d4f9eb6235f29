"""The golden files, which have all objects of each example and of some more resources.

`make generate` writes them; a test and `make lint` compare them with the code.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from tests.operator.api.resources import good
from tests.operator.desired.facts import FACTS

from disagg_operator.api import DisaggDeployment, parse, parse_file
from disagg_operator.desired import render

REPO = Path(__file__).resolve().parents[3]
EXAMPLES = ("quickstart", "llama-70b", "llama-8b", "pvc", "vllm-8b", "vllm-70b", "sglang-8b", "lora")
_GPU = {"accelerator": {"count": 1}}
_MI300X = {"count": 2, "product": "AMD_Instinct_MI300X_OAM", "resourceName": "amd.com/gpu"}
_CLAIMS: dict[str, Any] = {"accelerator": {"count": 2}, "parallelism": {"tensor": 2}}
_NETWORK = {"attachmentRef": {"name": "fabric"}, "rdmaResource": {"name": "rdma/hca"}}
# What no example shows.
SPECS: dict[str, dict[str, Any]] = {
    "vllm-cpu": {
        "engine": {
            "type": "vllm", "dtype": "float32", "blockSizeTokens": 32, "threads": 2, "args": ["--enforce-eager"],
            "env": [{"name": "UCX_LOG_LEVEL", "value": "info"}], "prefixCaching": {"enabled": False},
        },
        "prefill": {"kvCacheSize": "128Mi", "args": ["--seed", "1"]},
        "decode": {"kvCacheSize": "128Mi"},
        "kvTransfer": {"network": {"attachmentRef": {"name": "fabric"}}},
    },
    "sglang-network": {
        "engine": {"type": "sglang", "podSecurityLevel": "Baseline", "leaseSeconds": 90},
        "model": {"uri": "pvc://models/llama", "adapters": [{"name": "law", "uri": "pvc://models/law"}]},
        "prefill": _GPU, "decode": _GPU,
        "kvTransfer": {"transport": "rdma", "network": _NETWORK},
    },
    "vllm-virtual-functions": {
        "engine": {"type": "vllm"},
        "prefill": {"accelerator": {"count": 2}, "parallelism": {"tensor": 2}, "kvCacheSize": "16Gi"},
        "decode": {"accelerator": {"count": 2}, "parallelism": {"tensor": 2}, "kvCacheSize": "16Gi"},
        "kvTransfer": {
            "transport": "rdma",
            "network": {
                "attachment": {
                    "type": "sriov", "resourceName": "nvidia.com/vf", "mtu": 9000,
                    "ipam": {"type": "nv-ipam", "poolName": "kv"},
                },
                "rdmaResource": {"name": "nvidia.com/vf", "per": "Accelerator"},
            },
        },
    },
    "vllm-rails-as-root": {
        "engine": {"type": "vllm"},
        "prefill": {"accelerator": _MI300X, "parallelism": {"tensor": 2}},
        "decode": {"accelerator": _MI300X, "parallelism": {"tensor": 2}},
        "kvTransfer": {
            "transport": "rdma",
            "coLocation": {"topologyKey": "fabric.topograph.run/tier-1"},
            "network": {
                "rails": [{"name": f"rail{n}", "resourceName": f"nvidia.com/rail{n}"} for n in range(2)],
                "rdmaMode": "Root",
            },
        },
    },
    "sglang-host-devices": {
        "engine": {"type": "sglang"},
        "prefill": {"accelerator": {"product": "Max_1550", "resourceName": "gpu.intel.com/xe"}},
        "decode": {"accelerator": {"product": "Max_1550", "resourceName": "gpu.intel.com/xe"}},
        "kvTransfer": {
            "network": {
                "attachment": {
                    "type": "host-device", "resourceName": "nvidia.com/hostdev", "subnet": "10.9.0.0/24",
                },
                "rdmaResource": {"name": "nvidia.com/hostdev"},
            },
        },
    },
    "vllm-claims": {
        "engine": {"type": "vllm"},
        "prefill": _CLAIMS | {"deviceClaim": {"templateName": "pairs-of-2", "rdmaDevices": 2}},
        "decode": _CLAIMS | {"deviceClaim": {"templateName": "pairs-of-2", "rdmaDevices": 2}},
        "kvTransfer": {"transport": "rdma", "network": {"devicesBy": "Claim", "interface": "dranet0"}},
    },
    "sglang-claimed-functions": {
        "engine": {"type": "sglang"},
        "prefill": {**_GPU, "deviceClaim": {"templateName": "nics", "accelerators": False, "rdmaDevices": 1}},
        "decode": {**_GPU, "deviceClaim": {"templateName": "nics", "accelerators": False, "rdmaDevices": 1}},
        "kvTransfer": {
            "transport": "rdma", "network": {"devicesBy": "Claim", "attachmentRef": {"name": "fabric"}},
        },
    },
    "lmdeploy": {"engine": {"type": "lmdeploy", "maxModelLen": 8192}, "prefill": _GPU, "decode": _GPU},
    "lmdeploy-experimental": {
        "engine": {"type": "lmdeploy", "experimental": True},
        "prefill": _GPU, "decode": _GPU,
        "kvTransfer": {"transport": "rdma", "network": _NETWORK},
    },
}  # fmt: skip


class _ProgramDumper(yaml.SafeDumper):
    """A dumper that writes a program in lines, as one reads it."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_ProgramDumper.add_representer(str, _text)


def example(name: str) -> DisaggDeployment:
    """Return the resource of examples/NAME.yaml."""
    return parse_file(yaml.safe_load((REPO / "examples" / f"{name}.yaml").read_text()))


def golden_files() -> dict[Path, str]:
    """Return the text that each golden file must have."""
    resources = {name: example(name) for name in EXAMPLES} | {n: parse(good(**spec)) for n, spec in SPECS.items()}
    return {
        REPO / "tests/golden" / f"{name}.yaml": yaml.dump_all(
            render(dd, FACTS), Dumper=_ProgramDumper, sort_keys=False, width=120
        )
        for name, dd in resources.items()
    }
