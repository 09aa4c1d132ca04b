"""What a run will need, before anything is downloaded: parameters, FLOPs and memory (`--dry-run`)."""
