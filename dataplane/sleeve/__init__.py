"""The sleeve: the user-space path. Frames travel in sealed records over UDP where the kernel's path cannot go."""
