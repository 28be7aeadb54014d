"""Devices, number formats, CPU kernels."""
