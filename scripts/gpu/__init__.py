"""Sections of scripts/gpu_check, each a module that runs in a process of its own: python -m scripts.gpu.kernels."""
