"""Whole networks on one machine, to look at. Each script builds one out of `mesh.lab.Lab` and leaves nothing behind."""
