"""Tensor parallelism: one process a rank, all in one pod; rank 0 is the worker itself (scheduler,
HTTP, KV transfer).
"""
