"""SOAP on the host: kernels compiled by numba, and their threads."""
