"""The HTTP client under the native transport: HTTP/1.1 on the event loop's own thread, straight or through a proxy."""
