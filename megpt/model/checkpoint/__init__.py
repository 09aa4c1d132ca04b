"""Checkpoint folders: `save` writes them, `load` reads them, `fingerprint` hashes them, `card` describes them."""
