"""Programs on a machine: supervision, systemd files, checks before starting, progress."""
