"""What asyncio and the process need: worker pool, event loops and their threads, garbage collection, open files."""
