"""Pictures drawn with an adapter, marked as generated."""
