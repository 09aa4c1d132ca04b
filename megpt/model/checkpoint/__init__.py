"""Checkpoint folders: written, loaded, fingerprinted, described."""
