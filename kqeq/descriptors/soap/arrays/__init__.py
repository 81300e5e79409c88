"""SOAP in array namespaces, with CUDA source for expansion and adjoint."""
