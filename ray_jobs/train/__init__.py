"""Training on Ray Train: the job, its group of workers, one worker, validation, and the log on the screen."""
