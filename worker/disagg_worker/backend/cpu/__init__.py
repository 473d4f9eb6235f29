"""The backend for CPUs: kernels in C++ (src/), compiled by build.py and called through ctypes."""
