"""How the clinical labeller reads: sentences, spelling, findings, context, sides. `megpt.evaluation.clinical` uses it."""
