"""References and training reports out of another file, found by id, or by order where a file has no ids."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import islice

from megpt.config import EvaluateConfig
from megpt.errors import InputError
from megpt.evaluation.reading.columns import Columns, id_columns, known_names, reference_columns
from megpt.evaluation.reading.ids import AMBIGUOUS, Matcher, as_id, named
from megpt.evaluation.reading.records import Counts, records
from megpt.evaluation.reading.tables import SPLIT, Table, open_table
from megpt.evaluation.texts import is_blank

TRAIN = "train"


@dataclass
class References:
    """References by the id of the prediction; `by_order` where they are those of the rows instead."""

    texts: dict[str, str] = field(default_factory=dict)
    subjects: dict[str, str] = field(default_factory=dict)
    splits: dict[str, str] = field(default_factory=dict)
    said: str = ""


def open_references(path: str, settings: EvaluateConfig, section: str) -> tuple[Table, Columns]:
    """A file of references or training reports, and what of it counts.

    Raises:
        InputError: see `tables.open_table` and `columns.reference_columns`.
    """
    names = known_names(settings.columns)
    table = open_table(path, names=names, encoding=settings.encoding, delimiter=settings.delimiter)
    return table, reference_columns(table, settings.columns, section)


def find_references(path: str, ids: list[str], *, numbered: bool, settings: EvaluateConfig, section: str) -> References:
    """The references of predictions in another file.

    Args:
        ids: the predictions' ids, in their order.
        numbered: the predictions have no ids of their own; references are then taken by order.

    Raises:
        InputError: no id in common; another number of rows where there are no ids; one id with two texts.
    """
    table, columns = open_references(path, settings, section)
    if numbered or columns.id is None:
        return _by_order(table, columns, ids)
    matcher = Matcher(ids)
    columns = replace(columns, id=_best_id(table, columns, matcher))
    counts, found = Counts(), References()
    loosely: dict[str, str] = {}
    conflicts: dict[str, None] = {}
    for record in records(table, columns, counts):
        study, exact = matcher.find(record.id or "")
        if study is None or is_blank(record.text):
            continue
        text, into = record.text or "", found.texts if exact else loosely
        # an annotation with one entry an image repeats the report of the study
        if into.setdefault(study, text) != text:
            if exact:
                conflicts[study] = None
            into[study] = AMBIGUOUS
        if split := record.row.get(SPLIT) or record.row.get("split"):
            found.splits[study] = str(split)
        if columns.subject and (subject := as_id(record.row.get(columns.subject))):
            found.subjects[study] = subject
    if conflicts:
        raise InputError(
            f"{len(conflicts)} ids are in {path} more than once, with different texts",
            where=named(list(conflicts)),
            next="keep one row an id, or set evaluate.columns.id to a column that names each row once",
        )
    unclear = [study for study, text in loosely.items() if text == AMBIGUOUS and study not in found.texts]
    more = {s: text for s, text in loosely.items() if text != AMBIGUOUS and s not in found.texts}
    found.texts |= more
    parts = [f"{len(found.texts)} of {len(ids)} found"]
    parts += [f"{len(more)} of them by ids written otherwise (12, 12.0, 0012)"] if more else []
    parts += [f"{len(unclear)} ids match several texts and are left out"] if unclear else []
    found.said = "; ".join(
        [f"references: {table.path.name}, {table.kind}; {columns.shown(truth=False)}", *parts, *counts.said()]
    )
    if not found.texts:
        raise _nothing_in_common(table, columns, ids)
    return found


def training_texts(path: str, *, settings: EvaluateConfig, section: str) -> tuple[list[str], str]:
    """Training reports of a file, and what was taken: its training split where it has splits, else all of it."""
    table, columns = open_references(path, settings, section)
    counts, every, train, splits = Counts(), list[str](), list[str](), False
    for record in records(table, replace(columns, id=None), counts):
        split = record.row.get(SPLIT) or record.row.get("split")
        splits = splits or split == TRAIN
        if record.text is not None and not is_blank(record.text):
            (train if split == TRAIN else every).append(record.text)
    texts = train if splits else every
    if not texts:
        raise InputError(f"{path} holds no training report", next="set training=PATH to a file that does")
    which = "split train" if splits else "all rows"
    parts = [f"training: {table.path.name}, {table.kind}; {columns.shown(truth=False)}; {len(texts)} reports, {which}"]
    return texts, "; ".join([*parts, *counts.said()])


def has_training(path: str, settings: EvaluateConfig, section: str) -> bool:
    """Whether a file of references is an annotation that also lists the training split."""
    table, _ = open_references(path, settings, section)
    return SPLIT in table.columns and any(row.get(SPLIT) == TRAIN for _, row in table.rows())


def _by_order(table: Table, columns: Columns, ids: list[str]) -> References:
    counts = Counts()
    texts: list[str | None] = []
    tested: list[str | None] = []
    for record in records(table, replace(columns, id=None), counts):
        texts.append(record.text)
        if (record.row.get(SPLIT) or record.row.get("split")) == "test":
            tested.append(record.text)
    chosen, which = (tested, "split test") if tested else (texts, "all rows")
    if len(chosen) != len(ids):
        raise InputError(
            f"{table.path} has {len(chosen)} references for {len(ids)} predictions",
            where=which,
            cause="one of the files has no ids, so they can only be matched by their order",
            next="give both files an id column, or the same number of rows",
        )
    said = f"references: {table.path.name}, {table.kind}; {columns.shown(truth=False)}; {which}, by order"
    found = {study: text for study, text in zip(ids, chosen, strict=True) if text is not None}
    return References(found, said="; ".join([said, *counts.said()]))


def _best_id(table: Table, columns: Columns, matcher: Matcher) -> str | None:
    """The id column that matches most predictions; the likeliest one where several do."""
    names = id_columns(table, columns.id)
    if len(names) < 2:
        return columns.id
    hits: dict[str, set[str]] = {name: set() for name in names}
    for _, row in table.rows():
        for name in names:
            study = as_id(row.get(name))
            if study and (match := matcher.find(study)[0]):
                hits[name].add(match)
    return max(names, key=lambda name: len(hits[name]))


def _nothing_in_common(table: Table, columns: Columns, ids: list[str]) -> InputError:
    theirs = [record.id or "" for record in islice(records(table, columns, Counts()), 3)]
    return InputError(
        f"none of the {len(ids)} predictions has a reference in {table.path}",
        where=f"ids there ({columns.id}): {named(theirs)} …; ids of the predictions: {named(ids[:3])} …",
        cause="the two files name their studies in different ways, or are of different sets",
        next="set evaluate.columns.id to the column that both share",
    )
