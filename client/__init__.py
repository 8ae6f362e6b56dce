"""One institution: its data, its steward and the untrusted shim that Flower runs."""
