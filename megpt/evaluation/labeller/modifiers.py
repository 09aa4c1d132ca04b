"""The words that deny, doubt or set aside a finding, and where their reach ends: the labeller's ConText lexicon.

After ConText (Harkema et al., 2009) and NegBio (Peng et al., 2018), rewritten for radiology. Templates as in
`phrases.expand`; the longest phrase at a place wins, so "not excluded" is a doubt although "not" is a denial. A phrase
listed both before and behind its finding ("removed") belongs to the one that follows in its clause, else to the one
before.
"""

from __future__ import annotations

from typing import NamedTuple

DENIED, DOUBTED, SET_ASIDE = "denied", "doubted", "set aside"
"""What a modifier makes of a finding. Set aside: history, family, or what an examination is to look for."""

BEFORE, BEHIND, AROUND, THROUGHOUT = "before", "behind", "around", "throughout"
"""Before its findings ("no X"), behind them ("X is absent"), between two ("X versus Y"), or anywhere."""

PSEUDO, STOP = "pseudo", "stop"


class ModifierRule(NamedTuple):
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
_FULLY = "(completely|fully|entirely|both|now|since|largely completely|subsequently|essentially|interval|all|)"
_PARTLY = (
    "(partially|partly|incompletely|nearly|almost|largely|mostly|not completely|not fully|not entirely|not yet"
    "|not|never|not been|nearly completely|almost completely|not quite|slightly|somewhat)"
)
_REMOVAL = "(resolution|removal|clearing|clearance|disappearance|withdrawal|explantation|extraction|regression)"
_EVIDENCE = "(evidence|sign|signs|indication|suggestion|findings|radiographic evidence|finding|features|appearance)"
_GREAT = "(significant|appreciable|substantial|definite|interval|major|relevant|obvious|marked|real|large|)"
_CHANGED = "(changed|increased|improved|decreased|different|progressed|worsened|worse|larger|smaller|altered)"
_SURGERY = "(resection|lobectomy|pneumonectomy|segmentectomy|mastectomy|surgery|excision|repair|ablation)"
_RAISE = "(raise|raises|raising|raised)"

RULES = (
    ModifierRule(
        DENIED,
        BEFORE,
        200,
        (
            *("no", "without", "neither", "nor", "none of", "absence of", "(is|are|was|were|) negative for"),
            "(free|clear|devoid) (of|from)",
            f"(no|without) (definite|convincing|clear|obvious|acute|any|) {_EVIDENCE} (of|for|to suggest|)",
            *("clear without", "lack of", "lacks", "lacking", "excludes", "rules out", "ruled out for", "cleared of"),
            *("unremarkable for", "(can|able to|sufficient to) (exclude|rule out)", "(no|not) (a|any|an)"),
            "cleared of",
            *("fails to (reveal|show|demonstrate)", "nothing to suggest", "denies", "argues against"),
            "inconsistent with",
            *("does not (show|demonstrate|reveal|represent|suggest|look like|have|contain)", "do not (show|see|have)"),
            *("did not (show|demonstrate|reveal|see)", "not (consistent|compatible) with", "no longer", "never (had|)"),
        ),
    ),
    ModifierRule(
        DENIED,
        BEFORE,
        7,
        (
            *("not", "absent", "rather than", "instead of", "as opposed to", "excluding", "low likelihood of"),
            *("unlikely (to be|to represent|)", "removed", "(has|have) been removed", "resolved", "discontinued"),
            f"{_FULLY} (complete|interval|complete interval|) {_REMOVAL} of",
            *("evacuation of", "(explanted|extracted|withdrawn)"),
            f"(no longer|not) {_SURELY} {_SEEN} (is|are|was|were)",
            "(may|might|could|can|to|) (simulate|simulates|simulating|mimic|mimics|mimicking)",
            "(be|) (mistaken for|confused with)",
        ),
    ),
    ModifierRule(
        DENIED,
        BEHIND,
        14,
        (
            f"{_BE} (not|no longer) {_SURELY} {_SEEN}",
            f"(can|could|do|does|did) (not|no longer) (be|) {_SURELY} {_SEEN}",
            f"cannot (be|) {_SURELY} {_SEEN}",
            f"{_BE} {_FULLY} {_GONE}",
            "(has|have|did|does|do) not (developed|develop|recurred|recur|occurred|appeared|formed)",
            f"{_BE} {_FULLY} (excluded|ruled out|negative)",
            f"(have|has|had|to have) {_FULLY} {_GONE}",
            f"(is|are|was|were|has been|have been|has|have) {_GONE} (completely|entirely|fully|in the interval)",
            *("(is|are|was|were|appears|appear|seems) (now|) (highly|very|) (unlikely|absent|negative)", "unlikely"),
            *("not in place", "(was|were|has been|have been) taken out", "none", "no longer exists", "nil"),
            "is no more",
            *("no longer (remains|remain|persists|persist)", "(does|do) not (exist|persist)", "not any more"),
        ),
    ),
    ModifierRule(DENIED, BEFORE, 2, ("clear", "clear no")),
    ModifierRule(
        DENIED, BEHIND, 2, ("(is|are|appears|appear) (within|) (normal|normal limits|limits of normal|unremarkable)",)
    ),
    ModifierRule(DENIED, BEHIND, 3, (f"(complete|interval|) {_REMOVAL}",)),
    ModifierRule(
        DOUBTED,
        BEFORE,
        12,
        (
            "(may|might|could) (also|) (be|represent|reflect|indicate|relate to|have|suggest|)",
            "(may|might|could) (also|) be (due|related|secondary) to",
            "alternatively",
            *("possible", "possibly", "possibility (of|for|that)", "probable", "probably", "(most|) likely", "perhaps"),
            *("suggest", "suggests", "suggested", "suggesting", "suggestive of", "suspicious for"),
            "suspicion (of|for)",
            *("suspect", "suspected", "suspicious", "concern (for|of)", "concern is for", "concerned (for|about)"),
            "concerning for",
            *("worrisome for", "worried about", "question of", "questionable", "question", "questioned", "equivocal"),
            *("presumed", "presumably", "presumptive", "borderline", "seemingly", "equivocal for", "maybe"),
            "(cannot|can not|could not|unable to) (entirely|completely|definitely|reliably|) (exclude|rule out)",
            "(not|never) (entirely|completely|) (exclude|excluded|rule out|ruled out)",
            "(difficult|hard) to exclude",
            "(does|do|did) not (entirely|completely|) (exclude|rule out)",
            *("fails to exclude", "potential", "potentially", "conceivably", "consider", "or possibly", "rule out"),
            "considerations include",
            *("consideration (of|for)", "suggestion of", "less likely", "favor", "favors", "favored (to be|)"),
            *("favoring", "?", "exclude"),
            *("(can|may|could|might) be seen (with|in)", "doubtful", "doubt", "uncertain", "hint of", "simulating"),
            f"{_RAISE} (the|) (possibility|concern|question|suspicion) (of|for)",
            *("either", "(thought|believed|felt) to (be|represent|reflect)", "impression of"),
        ),
    ),
    ModifierRule(
        DOUBTED,
        BEFORE,
        25,
        ("differential (diagnosis|) (includes|include|including|considerations include|would include|of|)",),
    ),
    ModifierRule(
        DOUBTED,
        BEHIND,
        8,
        (
            "(cannot|can not|could not|may not) be (entirely|completely|fully|totally|reliably|) (excluded|ruled out)",
            "(cannot|can not|could not) (entirely|completely|fully|definitely|reliably|) be (excluded|ruled out)",
            "(is|are|was|were|) not (be|) (entirely|completely|fully|totally|) (excluded|ruled out)",
            "(is|are|remains|remain) (also|) (a|) (possible|possibility|likely|probable|questionable|uncertain)",
            "(is|are|was|were|) (also|) (suspected|questioned|suggested|favored|presumed|considered)",
            *("(should|must|needs to) be (considered|excluded|ruled out)", "if (any|present)"),
            *("is (a|another|also a|one) consideration", "would be (a|another) consideration"),
            *("difficult to exclude", "to be excluded", "is not impossible"),
            *("(may|might|could) be (present|obscured|hidden|missed|considered)", "would be (possible|difficult)"),
            *("(is|are) (of concern|a concern|raised|less likely|doubtful|equivocal|indeterminate)", "possible", "?"),
            *("questionable", "probable", "is in the differential", "could have this appearance", "suspected"),
        ),
    ),
    ModifierRule(DOUBTED, AROUND, 6, ("versus", "vs", "cannot be (distinguished|differentiated) from")),
    ModifierRule(
        DOUBTED, THROUGHOUT, 20, ("in the (appropriate|proper|correct|right) clinical (setting|context|scenario)",)
    ),
    ModifierRule(
        SET_ASIDE,
        BEFORE,
        8,
        (
            "(past|prior|previous|remote|known|clinical|reported|given|) history (of|significant for)",
            "exposure to",
            f"(status post|post|prior|previous|interval|after|for|) (wedge|partial|left|right|) {_SURGERY} (of|for)",
            "(status post|after|following|post) (treatment|radiation|radiotherapy|chemotherapy|drainage) (of|for)",
            *("family history (of|)", "(mother|father|sister|brother|husband|wife) (has|had|with)", "risk (of|for)"),
            *("if", "should (symptoms|there|the|he|she|clinical)", "in case of", "risks of", "symptoms of"),
            "to prevent",
            "(to|) (evaluate|assess|check|look|screen|monitor) for",
            *("(correlate|correlation) (clinically|) for", "clinical correlation for", "for (the|) evaluation of"),
            *("to (exclude|rule out|confirm)", "(evaluation|assessment|screening|indication|treated) for", "watch for"),
            "(to|until) (document|ensure|confirm|assess|assure|) (complete|) (resolution|clearing) (of|)",
            *("clinical (concern|suspicion|question) (for|of)", "(vaccination|immunization) (for|against)"),
        ),
    ),
    ModifierRule(
        SET_ASIDE,
        BEHIND,
        6,
        (
            "(may|might|can) not be (demonstrated|seen|visible|apparent|detected|visualized)",
            "in the past",
            "(years|months) ago",
            "(was|were|has been|have been|) (previously|) (resected|excised)",
        ),
    ),
)


PSEUDOS = (
    f"(no|without|little|minimal|not) {_GREAT} {_GREAT} (change|increase|decrease|improvement|progression|worsening)",
    f"(not|no) (significantly|appreciably|substantially|grossly|) {_CHANGED}",
    f"(is|are|has|have) not (significantly|appreciably|substantially|grossly|) {_CHANGED}",
    *("no (interval|significant|) (resolution|clearing) (of|)", "no (absence|lack) of", "no new change", "no less"),
    f"(has|have|is|are|was|were|) {_PARTLY} {_GONE}",
    f"(has|have|is|are|was|were) (been|) {_PARTLY} {_GONE}",
    "(partial|incomplete|near complete|some|without|slight) (interval|) (resolution|clearing) (of|)",
    "(was|were|is|are|) not (seen|present|visualized|identified|evident) (on|in) (the|) (prior|previous|comparison)",
    "not (seen|present|visualized|identified|evident) (previously|before|earlier)",
    *("not only", "not well", "not (absent|without|free of|negative for|devoid of|lacking)"),
    *("(no|without) (doubt|question) (that|of|about|)", "not (the|) cause", "not necessarily", "not optimally"),
    "not just",
    *("not as (well|large|prominent|conspicuous|dense)", "no longer (intubated|as)", "not to be missed"),
    "not included",
    *("cannot be (denied|overlooked|ignored)", "(failed|fails) to (resolve|clear)"),
    "(does|did|do) not (resolve|clear)",
    *("resolving", "not significantly", "not without", "no surprise"),
    "no (complication|complications) (of|after|from)",
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
    *("status post", "post", "since", "with the exception of", "with", "now"),
)
"""Where what stands before its findings ends."""
