"""Addresses without a central store: who owns which, who gives them, and what happens when a host dies."""
