"""Bytes to arrays and back. A new codec is one file and one entry point of group `tidegate.codecs`."""
