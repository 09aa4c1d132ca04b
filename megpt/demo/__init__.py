"""The demo's own material: drawn films and the small language model that learns their reports."""
