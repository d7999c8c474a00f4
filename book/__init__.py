"""The web rendition of the chapters."""
