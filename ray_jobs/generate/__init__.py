"""Reports for a whole archive: the job, its actor, and the watch over its nodes."""
