"""The way to the coordinator: a SuperNode, what it trusts, and which of the coordinator's bundles it runs."""
