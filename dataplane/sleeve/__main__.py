"""The sleeve worker as a process: `python -m dataplane.sleeve SOCKET`."""
