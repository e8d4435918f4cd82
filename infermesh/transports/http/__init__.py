"""HTTP clients under the native transport."""
