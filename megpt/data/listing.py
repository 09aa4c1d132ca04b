"""What a listing found: the one line that is said after it, and the refusal of one that threw something away.

found = Found(source)
for listed in found.counted(source.listed()): ...
found.check()
log(found.line())          # folder: 4 studies, 4 films, 0 reports, 0 labels, test 4 (a study per folder; …)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from megpt.data.sources.base import Source
from megpt.data.studies import Listed
from megpt.study import SPLITS, Study

COUNTS = ("studies", "films", "reports", "labels")
# How studies came into their splits, by the shard list's note.
SPLIT_RULES = {
    "archive": "splits of the archive",
    "patient": "split by patient, since the archive has no splits",
    "none": "all test, since nothing has a report",
}


class Found:
    """Counts studies as they are listed.

    Args:
        source: the archive, whose own counts are added when the listing has ended.
    """

    def __init__(self, source: Source | None):
        self.source = source
        self.counts: Counter[str] = Counter(dict.fromkeys(COUNTS, 0))

    def counted(self, studies: Iterable[Listed]) -> Iterator[Listed]:
        """The same studies, counted as they pass."""
        for listed in studies:
            self.see(listed.study)
            yield listed

    def see(self, study: Study) -> None:
        self.counts["studies"] += 1
        self.counts["films"] += len(study.views)
        self.counts["reports"] += bool(study.report or study.findings or study.impression)
        self.counts["labels"] += bool(study.labels)

    def check(self) -> None:
        """Let the source refuse what it found.

        Raises:
            InputError: tables or archives lie beside the films, and nothing has read them.
        """
        if self.source is not None:
            self.source.check(reports=self.counts["reports"], labels=self.counts["labels"])

    def notes(self) -> dict[str, Any]:
        """What goes into the record of the list, so that a resumed job can say it too."""
        source = self.source
        if source is None:
            return {"found": dict(self.counts)}
        return {
            "found": dict(self.counts),
            "format": source.format,
            "rule": source.rule,
            "not_read": dict(sorted(source.ignored.items())),
        }


def line(notes: Mapping[str, Any], splits: Iterable[tuple[str, int]]) -> str:
    """What was found and by which rule, from the notes of a list and its studies by split."""
    found = notes.get("found") or {}
    numbers = [f"{found.get(name, 0):,} {name}" for name in COUNTS]
    order = {name: number for number, name in enumerate(SPLITS)}
    numbers += [f"{name} {count:,}" for name, count in sorted(splits, key=lambda pair: order.get(pair[0], 9)) if name]
    rules = [notes.get("rule") or "", SPLIT_RULES.get(notes.get("split_by", ""), "")]
    text = f"{notes.get('format', 'archive')}: {', '.join(numbers)}"
    told = "; ".join(rule for rule in rules if rule)
    ignored = ", ".join(f"{count:,} {what}" for what, count in (notes.get("not_read") or {}).items())
    return text + (f" ({told})" if told else "") + (f"; not read or decided: {ignored}" if ignored else "")
