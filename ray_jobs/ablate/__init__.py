"""Variants of one config over several seeds: the plan of runs, the job that does them, and what it writes."""
