"""The arithmetic of the network: one interface, implemented in plain torch for any device and in
faster ways for CPUs and CUDA.
"""
