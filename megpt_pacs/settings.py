"""The extension's own settings: `data.options.…` of a dicomweb source, and `send.…`."""

from __future__ import annotations

import re
from datetime import date, timedelta
from typing import Annotated

from pydantic import ConfigDict, field_validator, model_validator

from megpt.settings import Indifferent, Positive, Section

_DATES = re.compile(r"\d{8}(-(\d{8})?)?|-\d{8}")


class DicomWebOptions(Section):
    """Which studies of a PACS are asked for."""

    model_config = ConfigDict(coerce_numbers_to_str=True)

    dates: Annotated[str | None, Indifferent] = None
    """StudyDate: one day (`20261126`), or a range (`20261101-20261130`, `20261101-`)."""
    days: Annotated[Positive | None, Indifferent] = None
    """The last so many days, today included; for a command that runs every day."""
    description: str | None = None
    """StudyDescription, with `*` and `?` as wildcards, as the PACS matches it."""
    most: Annotated[Positive | None, Indifferent] = None
    """Ask for no more than so many studies."""
    page: Annotated[Positive, Indifferent] = 200
    """Studies of one answer."""

    @field_validator("dates")
    @classmethod
    def _dates(cls, text: str | None) -> str | None:
        if text is None:
            return text
        if not _DATES.fullmatch(text):
            raise ValueError("it is YYYYMMDD, YYYYMMDD-YYYYMMDD, or one of them left out")
        for day in text.split("-"):
            if day:
                date(int(day[:4]), int(day[4:6]), int(day[6:]))
        return text

    @model_validator(mode="after")
    def _one_of_two(self) -> DicomWebOptions:
        if self.dates and self.days:
            raise ValueError("dates and days are both set; one of them says when")
        return self

    def filters(self) -> dict[str, str]:
        """What is asked of each study."""
        first = date.today() - timedelta(days=self.days - 1) if self.days else None
        dates = f"{first:%Y%m%d}-" if first else self.dates
        wanted = {"StudyDate": dates, "StudyDescription": self.description}
        return {name: value for name, value in wanted.items() if value}

    @property
    def whole(self) -> bool:
        """Whether all that the PACS holds is asked for."""
        return not self.filters() and self.most is None


class SendOptions(Section):
    """Where reports are sent, and whether they are."""

    to: str | None = None
    """The PACS: `dicomweb://HOST[:PORT]/PATH`, or `dicomwebs://…` for TLS."""
    store: Annotated[bool, Indifferent] = False
    """Whether the reports are stored; without it the job says what it would store."""
