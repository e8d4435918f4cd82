"""The batch APIs of OpenAI and Anthropic: files, batches, and what goes wrong with them.

Everything large is on disk, in a folder that ends with the server; only ids and offsets are in memory.
"""
