"""A federation of separate processes on this machine."""
