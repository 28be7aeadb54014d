"""What this machine can do: devices, number formats, CPU kernels."""
