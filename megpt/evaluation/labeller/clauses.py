"""The words by which the labeller tells where one statement of a sentence ends and the next begins."""

from __future__ import annotations

PRIOR = frozenset(("prior", "previous", "treated", "resected", "former"))
"""Directly before a disease they set it aside ("prior pneumonia"), unless its sentence tells how it is now."""

NOT_PRIOR = frozenset(("is", "are", "was", "were", "with", "the", "and", "or", "exam", "study", "film", "radiograph"))
"""Between "prior" and a disease they say that it is something else that was before."""

CURRENT = frozenset(
    (
        *("unchanged", "stable", "again", "persists", "persistent", "persisting", "remains", "remain", "increased"),
        *("decreased", "larger", "smaller", "improved", "worse", "worsened", "seen", "noted", "residual", "is", "are"),
    )
)

VERBS = frozenset(("is", "are", "was", "were", "has", "have", "remains", "remain", "persists", "appears", "shows"))
"""A predicate behind its finding ("X is absent") does not reach over another one."""

EXISTENCE = frozenset(
    (
        *("seen", "identified", "noted", "present", "evident", "visualized", "appreciated", "detected", "found"),
        *("demonstrated", "observed", "apparent", "visible", "suspected", "definitely", "clearly", "otherwise", "been"),
    )
)
"""After a verb they go with a denied list: "no effusion and pneumothorax are | seen"; other predicates start anew."""

ASSERTIVE = frozenset(
    (
        *("small", "moderate", "mild", "minimal", "trace", "tiny", "stable", "unchanged", "persistent", "chronic"),
        *("mildly", "moderately", "bibasilar", "residual", "improved", "increased"),
        *("worsening", "low", "old", "healed"),
    )
)
"""After a denied finding and a comma they begin what is there, unless the list goes on to an "or"."""
