"""One-shot commands: ``generate``, ``embed``, ``transcribe`` and ``bench``."""
