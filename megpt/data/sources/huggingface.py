"""Parquet as the Hugging Face hub keeps image data sets: data/train-00000-of-00002.parquet with films inside.

A column `image` of {bytes, path} (or a list of them, or several such columns), beside text columns. Films are read from
the table when their study's turn comes.
"""

from __future__ import annotations

from pathlib import Path

from megpt.config import DataConfig
from megpt.data.sources.base import near_folders
from megpt.data.sources.manifest import ManifestSource
from megpt.data.sources.reading import TextForm
from megpt.data.sources.tablefile import TableFile
from megpt.places import place


class HuggingFaceSource(ManifestSource):
    """One study per row, or per study id where there is such a column; the files' names give the splits."""

    format = "huggingface"
    about = "Hugging Face Parquet with films inside: data/train-*.parquet, a column image of {bytes, path}"

    @classmethod
    def detect(cls, path: Path, data: DataConfig) -> bool:
        tables = cls.find(path, data)
        return bool(tables) and all(
            table.suffix == ".parquet" and TableFile(table, TextForm()).film_columns for table in tables[:1]
        )

    @classmethod
    def find(cls, path: Path, data: DataConfig) -> list[Path]:
        if data.annotations:
            return [place(data.annotations)]
        if path.is_file():
            return [path]
        if found := sorted(path.glob("*.parquet")) or sorted(path.glob("data/*.parquet")):
            return found
        return [table for folder in near_folders(path)[1:] for table in sorted(folder.glob("*.parquet"))]
