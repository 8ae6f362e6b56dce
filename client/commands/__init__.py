"""Parts of ``darkroom-client``, one file a subject."""
