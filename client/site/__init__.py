"""A site on disk: its settings, its layout, and all of it opened."""
