"""One round as a state machine: ask, collect, sum, step."""
