"""The words that deny, doubt or set aside a finding, and where their reach ends: the labeller's ConText lexicon.

After ConText (Harkema et al., 2009) and NegBio (Peng et al., 2018), rewritten for radiology. Templates as in
`phrases.expand`; the longest phrase at a place wins, so "not excluded" is a doubt although "not" is a denial. A phrase
listed both before and behind its finding ("removed") belongs to the finding that follows at once, else to the one before.
"""

from __future__ import annotations

from typing import NamedTuple

DENIED, DOUBTED, SET_ASIDE = "denied", "doubted", "set aside"
"""What a modifier makes of a finding. Set aside: history, family, or what an examination is to look for."""

BEFORE, BEHIND, AROUND = "before", "behind", "around"
"""Where a modifier stands: before its finding ("no X"), behind it ("X is absent"), or on both sides ("X versus Y")."""

PSEUDO, STOP = "pseudo", "stop"


class Rule(NamedTuple):
    """What some phrases make of the findings within `reach` words."""

    effect: str
    place: str
    reach: int
    phrases: tuple[str, ...]


_BE = "(is|are|was|were|has been|have been|being|be|been|)"
_SURELY = "(clearly|definitely|definitively|well|convincingly|currently|confidently|readily|further|)"
_SEEN = (
    "(seen|identified|visualized|visualised|visible|demonstrated|noted|present|evident|appreciated|observed|apparent"
    "|detected|found|suspected|shown|suggested|recognized|discerned|depicted|in evidence|there|delineated|confirmed)"
)
_GONE = "(resolved|cleared|removed|withdrawn|gone|disappeared|discontinued|explanted|extracted|evacuated|absent)"
_FULLY = "(completely|fully|entirely|now|since|largely completely|subsequently|essentially|interval|all|)"
_PARTLY = (
    "(partially|partly|incompletely|nearly|almost|largely|mostly|not completely|not fully|not entirely|not yet|not|never"
    "|not been|nearly completely|almost completely|not quite|slightly|somewhat)"
)
_REMOVAL = "(resolution|removal|clearing|clearance|disappearance|withdrawal|explantation|extraction|regression)"
_EVIDENCE = "(evidence|sign|signs|indication|suggestion|findings|radiographic evidence|finding|features|appearance)"
_GREAT = "(significant|appreciable|substantial|definite|interval|major|relevant|obvious|marked|real|large|)"
_CHANGED = "(changed|increased|improved|decreased|different|progressed|worsened|worse|larger|smaller|altered)"
_SURGERY = "(resection|lobectomy|pneumonectomy|segmentectomy|excision|repair|ablation)"
_RAISE = "(raise|raises|raising|raised)"

RULES = (
    Rule(
        DENIED,
        BEFORE,
        200,
        (
            *("no", "without", "neither", "nor", "none of", "absence of", "negative for", "(free|clear|devoid) (of|from)"),
            f"(no|without) (definite|convincing|clear|obvious|acute|any|) {_EVIDENCE} (of|for|to suggest|)",
            *("clear without", "lack of", "lacks", "lacking", "excludes", "rules out", "ruled out for", "cleared of"),
            *("unremarkable for", "(can|able to|sufficient to) (exclude|rule out)", "(no|not) (a|any|an)", "cleared of"),
            *("fails to (reveal|show|demonstrate)", "nothing to suggest", "denies", "argues against", "inconsistent with"),
            *("does not (show|demonstrate|reveal|represent|suggest|look like|have|contain)", "do not (show|see|have)"),
            *("did not (show|demonstrate|reveal|see)", "not (consistent|compatible) with", "no longer", "never (had|)"),
        ),
    ),
    Rule(
        DENIED,
        BEFORE,
        7,
        (
            *("not", "absent", "rather than", "instead of", "as opposed to", "excluding", "low likelihood of"),
            *("unlikely (to be|to represent|)", "removed", "(has|have) been removed", "resolved", "discontinued"),
            f"{_FULLY} (complete|interval|complete interval|) {_REMOVAL} of",
            "evacuation of",
        ),
    ),
    Rule(
        DENIED,
        BEHIND,
        14,
        (
            f"{_BE} (not|no longer) {_SURELY} {_SEEN}",
            f"(can|could|do|does|did) (not|no longer) (be|) {_SURELY} {_SEEN}",
            f"cannot (be|) {_SURELY} {_SEEN}",
            f"{_BE} {_FULLY} {_GONE}",
            f"{_BE} {_FULLY} (excluded|ruled out|negative)",
            f"(have|has|had|to have) {_FULLY} {_GONE}",
            f"(is|are|was|were|has been|have been|has|have) {_GONE} (completely|entirely|fully|in the interval)",
            *("(is|are|was|were|appears|appear|seems) (now|) (highly|very|) (unlikely|absent|negative)", "unlikely"),
            *("not in place", "(was|were|has been|have been) taken out", "none", "no longer exists", "nil", "is no more"),
            *("no longer (remains|remain|persists|persist)", "(does|do) not (exist|persist)", "not any more"),
        ),
    ),
    Rule(DENIED, BEHIND, 3, (f"(complete|interval|) {_REMOVAL}",)),
    Rule(
        DOUBTED,
        BEFORE,
        12,
        (
            "(may|might|could) (also|) (be|represent|reflect|indicate|relate to|be due to|be related to|have|suggest|)",
            *("possible", "possibly", "possibility (of|for|that)", "probable", "probably", "(most|) likely", "perhaps"),
            *("suggest", "suggests", "suggested", "suggesting", "suggestive of", "suspicious for", "suspicion (of|for)"),
            *("suspect", "suspected", "suspicious", "concern (for|of)", "concerned (for|about)", "concerning for"),
            *("worrisome for", "worried about", "question of", "questionable", "question", "questioned", "equivocal"),
            *("presumed", "presumably", "presumptive", "borderline", "seemingly", "equivocal for", "maybe"),
            "(cannot|can not|could not|unable to) (entirely|completely|definitely|reliably|) (exclude|rule out)",
            *("(not|never) (entirely|completely|) (exclude|excluded|rule out|ruled out)", "(difficult|hard) to exclude"),
            "(does|do|did) not (entirely|completely|) (exclude|rule out)",
            *("fails to exclude", "potential", "potentially", "conceivably", "consider", "or possibly", "rule out"),
            *("differential (diagnosis|) (includes|include|considerations include|of|)", "considerations include"),
            *("consideration (of|for)", "less likely", "favor", "favors", "favored (to be|)", "favoring", "?", "exclude"),
            *("(can|may|could|might) be seen (with|in)", "doubtful", "doubt", "uncertain", "hint of", "simulating"),
            f"{_RAISE} (the|) (possibility|concern|question|suspicion) (of|for)",
            *("cannot be distinguished from", "(thought|believed|felt) to (be|represent|reflect)", "impression of"),
        ),
    ),
    Rule(
        DOUBTED,
        BEHIND,
        8,
        (
            "(cannot|can not|could not|may not) be (entirely|completely|fully|totally|reliably|) (excluded|ruled out)",
            "(is|are|was|were|) not (be|) (entirely|completely|fully|totally|) (excluded|ruled out)",
            "(is|are|remains|remain) (also|) (a|) (possible|possibility|likely|probable|questionable|uncertain)",
            "(is|are|was|were|) (also|) (suspected|questioned|suggested|favored|presumed|considered)",
            *("should be considered", "is a consideration", "difficult to exclude", "to be excluded", "is not impossible"),
            *("(may|might|could) be (present|obscured|hidden|missed|considered)", "would be (possible|difficult)"),
            *("(is|are) (of concern|a concern|raised|less likely|doubtful|equivocal|indeterminate)", "possible", "?"),
            *("questionable", "probable", "is in the differential", "could have this appearance", "suspected"),
        ),
    ),
    Rule(DOUBTED, AROUND, 6, ("versus", "vs")),
    Rule(
        SET_ASIDE,
        BEFORE,
        8,
        (
            *("(past|prior|previous|remote|known|clinical|reported|given|) history (of|significant for)", "exposure to"),
            f"(status post|post|prior|previous|interval|after|following|for|) (wedge|partial|surgical|) {_SURGERY} (of|for)",
            "(status post|after|following|post) (treatment|radiation|radiotherapy|chemotherapy|drainage) (of|for)",
            *("family history (of|)", "(mother|father|sister|brother|husband|wife) (has|had|with)", "risk (of|for)"),
            *("if", "should (symptoms|there|the|he|she|clinical)", "in case of", "risks of", "symptoms of", "to prevent"),
            "(to|) (evaluate|assess|check|look|screen|monitor) for",
            *("to (exclude|rule out|confirm)", "(evaluation|assessment|screening|indication|treated) for", "watch for"),
            "(to|until) (document|ensure|confirm|assess|assure|) (complete|) (resolution|clearing) (of|)",
            *("clinical (concern|suspicion|question) (for|of)", "(vaccination|immunization) (for|against)"),
        ),
    ),
    Rule(SET_ASIDE, BEHIND, 6, ("in the past", "(years|months) ago", "(was|were) (previously|) (resected|excised)")),
)

PRIOR = frozenset(("prior", "previous", "treated", "resected", "former"))
"""Directly before a disease they set it aside ("prior pneumonia"), unless its sentence tells how it is now."""

CURRENT = frozenset(
    (
        *("unchanged", "stable", "again", "persists", "persistent", "persisting", "remains", "remain", "increased"),
        *("decreased", "larger", "smaller", "improved", "worse", "worsened", "seen", "noted", "residual", "is", "are"),
    )
)

PSEUDOS = (
    f"(no|without|little|minimal|not) {_GREAT} {_GREAT} (change|increase|decrease|improvement|progression|worsening)",
    f"(not|no) (significantly|appreciably|substantially|grossly|) {_CHANGED}",
    f"(is|are|has|have) not (significantly|appreciably|substantially|grossly|) {_CHANGED}",
    *("no (interval|significant|) (resolution|clearing) (of|)", "no (absence|lack) of", "no new change", "no less"),
    f"(has|have|is|are|was|were|) {_PARTLY} {_GONE}",
    f"(has|have|is|are|was|were) (been|) {_PARTLY} {_GONE}",
    "(partial|incomplete|near complete|some|without|slight) (interval|) (resolution|clearing) (of|)",
    *("not only", "not well", "no (additional|other)", "not (absent|without|free of|negative for|devoid of|lacking)"),
    *("(no|without) (doubt|question) (that|of|about|)", "not (the|) cause", "not necessarily", "not optimally", "not just"),
    *("not as (well|large|prominent|conspicuous|dense)", "no longer (intubated|as)", "not to be missed", "not included"),
    *("cannot be (denied|overlooked|ignored)", "(failed|fails) to (resolve|clear)", "(does|did|do) not (resolve|clear)"),
    *("resolving", "not significantly", "not without", "no surprise", "no (complication|complications) (of|after|from)"),
)
"""They hold a denying word and deny nothing: "no change in the small effusion", "not resolved"."""

CONTRASTS = (
    *("but", "however", "although", "though", "except (for|)", "other than", "(apart|aside) from", "besides", "while"),
    *("there (is|are|was|were|has been|have been|remains|remain|appears to be)", "whereas", "yet", "nevertheless"),
    *("otherwise", "and there", "positive for", "even though", "despite", "unlike", "in addition", "additionally"),
)
"""Where a denial or a doubt ends on either side: "no pneumothorax but a small effusion"."""

STOPS = (
    *("which", "and the", "heart (size|) is", "the heart", "lungs are", "the lungs", "following", "after", "because"),
    *("status post", "post", "since", "with the exception of", "with", "now", "secondary to"),
)
"""Where what stands before its findings ends."""

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
        *("mildly", "moderately", "bibasilar", "residual", "improved", "increased", "worsening", "low", "old", "healed"),
    )
)
"""After a denied finding and a comma they begin what is there, unless the list goes on to an "or"."""
