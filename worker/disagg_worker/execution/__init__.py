"""The execution of steps by this process alone or by a tensor-parallel group of ranks, and the
memory of the KV cache.

A group has one process per rank, all in one pod; rank 0 is the worker itself (scheduler, HTTP, KV
transfer).
"""
