"""Pictures and institutions of a simulated federation, and how they are made."""
