"""The worker's loop."""
