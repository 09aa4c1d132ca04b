"""megpt: radiology reports for chest X-rays at archive scale.

For research; not for clinical decisions. See README.md for the two commands.
"""

from megpt.model.register import install as _install

__version__ = "0.1.0"

_install()
