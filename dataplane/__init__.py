"""Frames and the kernel. Knows peers by name only; `dataplane.linux` alone touches the kernel."""
