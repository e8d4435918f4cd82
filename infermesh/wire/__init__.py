"""OpenAI's wire format, pure: requests to JSON, JSON to results, response formats. No I/O."""
