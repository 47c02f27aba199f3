"""Membership, topology and signed documents over TCP links. Knows nothing of frames; imports nothing else of Weft."""
