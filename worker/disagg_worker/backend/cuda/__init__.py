"""The backend for NVIDIA GPUs: kernels in Triton, matrix products by cuBLAS, and decode steps as
CUDA graphs.
"""

import os

# Triton 3.10 will change the default; the sums of products need the fused instruction.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

from disagg_worker.backend.cuda.backend import CudaBackend

__all__ = ["CudaBackend"]
