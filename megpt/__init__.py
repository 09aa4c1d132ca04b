"""megpt: radiology reports for chest X-rays at archive scale.

For research; not for clinical decisions. See README.md for the two commands. `import megpt.hf` registers the model with
transformers' Auto classes.
"""

__version__ = "0.1.0"
