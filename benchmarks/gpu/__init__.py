"""The speed of the engine on a GPU, compared with the limits of the GPU measured in the same
run.
"""
