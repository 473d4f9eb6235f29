"""Tensor parallelism with one process per rank, all in one pod; rank 0 is the worker itself
(scheduler, HTTP, KV transfer).
"""
