"""Where the network's arithmetic happens: one interface, plain torch everywhere, faster ways on CPU
and CUDA.
"""
