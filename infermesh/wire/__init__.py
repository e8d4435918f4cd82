"""OpenAI's wire format: requests to JSON, JSON to results, output formats. Pure: no clock, no I/O."""
