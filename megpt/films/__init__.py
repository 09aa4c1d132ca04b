"""Films: encoded files to pixels. A leaf that `data` and `model` may both call."""
