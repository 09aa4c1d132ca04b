"""Hugging Face's ImageFolder: metadata.csv, .jsonl or .parquet beside the films, once or in each split's folder.

train/metadata.csv: file_name,text      train/0000.png …      test/metadata.jsonl: {"file_name": "0000.png", …}
"""

from __future__ import annotations

from pathlib import Path

from megpt.config import DataConfig
from megpt.data.sources.manifest import ManifestSource, fits

ENDS = ("csv", "jsonl", "parquet")


class ImageFolderSource(ManifestSource):
    """One study per row; a folder called train, validation or test is the split."""

    format = "imagefolder"
    about = "Hugging Face ImageFolder: metadata.csv|jsonl|parquet with file_name, beside the films or in train/, test/"

    @classmethod
    def detect(cls, path: Path, data: DataConfig) -> bool:
        return path.is_dir() and not data.annotations and bool(cls.find(path, data))

    @classmethod
    def find(cls, path: Path, data: DataConfig) -> list[Path]:
        """All metadata files down to two folders below the root, which is as deep as `data/train/` is."""
        levels = ("", "*/", "*/*/")
        found = [table for level in levels for end in ENDS for table in sorted(path.glob(f"{level}metadata.{end}"))]
        return [table for table in found if fits(table, data)]
