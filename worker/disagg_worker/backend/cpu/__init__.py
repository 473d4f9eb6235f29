"""The fast way on CPUs: own kernels in C++ (src/), compiled by build.py and called by ctypes."""
