"""PURE: The names of the inference engines, and of the transports that move their KV."""

BUILTIN = "builtin"
VLLM = "vllm"
SGLANG = "sglang"
LMDEPLOY = "lmdeploy"
# The engines that run as a container of their own beside an adapter.
ADAPTED = (VLLM, SGLANG, LMDEPLOY)
ENGINES = (BUILTIN, *ADAPTED)

# What moves the KV of a pair, in status, labels, columns and logs.
RDMA, NVLINK, SHM, TCP = "rdma", "nvlink", "shm", "tcp"
TRANSPORTS = (RDMA, NVLINK, SHM, TCP)
# What a spec may ask for instead: the best that both ends of a pair have.
AUTO = "auto"
# How that is known: from counters of the engine and the devices, or from the configuration alone.
PROVED, CONFIGURED = "Proved", "Configured"
EVIDENCE = (PROVED, CONFIGURED)
