"""How the clinical labeller reads a report: sentences, spelling, context, sides. See `evaluation.clinical`."""
