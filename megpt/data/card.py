"""README.md of a table: the dataset card that tells Hugging Face datasets which files are which split.

    datasets.load_dataset(OUT)          # data/split=…/*.parquet as train, val, test; or reports/*.parquet

Without it, `datasets` would take every Parquet file below OUT, those of failed.parquet and of the plan too.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import yaml

from megpt.output import write_text

CARD = "README.md"

_TEXT = """
# {title}

{about} Written by megpt, for research; not for clinical decisions.

```python
import datasets, pandas

datasets.load_dataset("OUT")
pandas.read_parquet("OUT/{table}")
```

`OUT` is this folder. The columns are described in megpt's docs/outputs.md. `failed.parquet` lists the studies that
could not be used, and why.
"""


def write_card(out: Path, splits: Mapping[str, str], *, title: str, about: str) -> None:
    """Write the card.

    Args:
        splits: split → pattern of its files, relative to `out`.
    """
    files = [{"split": split, "path": pattern} for split, pattern in splits.items()]
    head = yaml.safe_dump({"configs": [{"config_name": "default", "data_files": files}]}, sort_keys=False)
    table = next(iter(splits.values())).split("/")[0]
    body = _TEXT.format(title=title, about=about, table=table)
    write_text(out / CARD, f"---\n{head}---\n{body}")
