"""The commands of ``darkroom-server``, one module a group."""
