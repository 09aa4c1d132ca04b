"""The words the clinical labeller knows: what names an observation, and what denies or doubts it.

Phrases are lower case and matched token by token; a longer phrase wins over a shorter one inside it. Compared with a
classifier trained on radiologists' labels (CheXbert) this is a dictionary: it knows what is written here.
"""

from __future__ import annotations

OTHER = "Other Finding"
"""Abnormal, but none of the 14: it only rules out "No Finding", as the CheXpert labeller has it."""

IGNORED = "Ignored"
"""Phrases that hold an observation's word and mean something else ("mass effect")."""

MENTIONS: dict[str, tuple[str, ...]] = {
    "Atelectasis": (
        *("atelectasis", "atelectases", "atelectatic", "subsegmental collapse", "lobar collapse", "lobe collapse"),
        *("collapse of the lung", "lung collapse", "collapsed lung", "collapsed lobe"),
    ),
    "Cardiomegaly": ("cardiomegaly", "cardiac enlargement", "enlargement of the heart"),
    "Consolidation": ("consolidation", "consolidations", "consolidative", "consolidated", "consolidating"),
    "Edema": (
        *("edema", "oedema", "heart failure", "chf", "cardiac failure", "cardiac decompensation", "fluid overload"),
        *("vascular congestion", "pulmonary congestion", "venous congestion", "interstitial congestion"),
        *("vascular engorgement", "volume overload"),
    ),
    "Enlarged Cardiomediastinum": (
        *("mediastinal widening", "mediastinal enlargement", "widening of the mediastinum", "widened mediastinum"),
        *("cardiomediastinal enlargement", "enlarged cardiomediastinum"),
    ),
    "Fracture": ("fracture", "fractures", "fractured"),
    "Lung Lesion": (
        *("nodule", "nodules", "micronodule", "micronodules", "mass", "masses", "nodular opacity", "nodular opacities"),
        *("nodular density", "nodular densities", "nodularity", "cavitary lesion", "lung lesion", "lung lesions"),
        *("pulmonary lesion", "pulmonary lesions", "focal lesion", "focal lung lesion", "neoplasm", "carcinoma"),
        *("tumor", "malignancy", "metastases", "metastasis", "metastatic disease", "nodular lesion", "mass lesion"),
        *("rounded opacity", "round opacity", "masslike opacity", "mass - like opacity"),
    ),
    "Lung Opacity": (
        *("opacity", "opacities", "opacification", "opacifications", "opacified", "infiltrate", "infiltrates"),
        *("infiltration", "airspace disease", "air space disease", "air - space disease", "airspace process"),
        *("airspace density", "airspace densities", "interstitial disease", "interstitial lung disease"),
        *("interstitial prominence", "prominent interstitial markings", "increased interstitial markings"),
        *("reticular pattern", "reticulation", "scar", "scars", "scarring", "peribronchial thickening"),
        *("streaky density", "streaky densities", "parenchymal density", "parenchymal densities"),
    ),
    "Pleural Effusion": ("effusion", "effusions", "pleural fluid", "hydropneumothorax", "hemothorax", "hydrothorax"),
    "Pleural Other": (
        *("pleural thickening", "pleural scarring", "pleural scar", "pleuroparenchymal scarring", "fibrothorax"),
        *("pleuro - parenchymal scarring", "pleural plaque", "pleural plaques", "pleural calcification"),
        *("pleural calcifications", "pleural based thickening", "apical thickening", "apical pleural thickening"),
    ),
    "Pneumonia": (
        *("pneumonia", "pneumonias", "bronchopneumonia", "infection", "infections", "infectious process"),
        *("infectious disease", "infectious etiology"),
    ),
    "Pneumothorax": ("pneumothorax", "pneumothoraces", "pneumothoraxes", "pneumothorace", "ptx", "hydropneumothorax"),
    "Support Devices": (
        *("pacemaker", "pacemakers", "pacer", "icd", "aicd", "defibrillator", "generator", "picc", "picc line"),
        *("central line", "central lines", "central venous line", "venous line", "subclavian line", "jugular line"),
        *("ij line", "dialysis line", "catheter", "catheters", "port - a - cath", "portacath", "port", "mediport"),
        *("infusion port", "chest port", "tube", "tubes", "ett", "ngt", "tracheostomy", "swan - ganz", "cannula"),
        *("lead", "leads", "wire", "wires", "stent", "stents", "drain", "drains", "hardware", "support devices"),
        *("support device", "device", "devices", "prosthetic valve", "valve replacement", "valve prosthesis"),
        *("mechanical valve", "artificial valve", "balloon pump", "arthroplasty", "lines and tubes"),
    ),
    OTHER: (
        *("emphysema", "emphysematous", "copd", "hyperinflation", "hyperinflated", "hyperexpansion", "hyperexpanded"),
        *(
            "hernia",
            "granuloma",
            "granulomas",
            "granulomatous",
            "granulomata",
            "granulomatous infection",
            "scoliosis",
            "kyphosis",
            "osteopenia",
        ),
        *("calcified nodule", "calcified nodules", "calcified nodular density", "calcified nodular densities"),
        *("degenerative", "spondylosis", "osteophyte", "osteophytes", "calcification", "calcifications", "calcified"),
        *("atherosclerosis", "atherosclerotic", "tortuous", "tortuosity", "ectatic", "aneurysm", "bronchitis"),
        *("bronchiectasis", "bullae", "bulla", "bullous", "blunting", "blunted", "elevation", "eventration"),
        *("fibrosis", "pneumomediastinum", "pneumoperitoneum", "deformity", "volume loss", "aspiration"),
        *("granulomatous infection", "subcutaneous emphysema", "arthritic", "lymphadenopathy", "adenopathy"),
        *("hypertension", "bronchiolitis"),
    ),
    IGNORED: (
        *("mass effect", "soft tissue edema", "subcutaneous edema", "pericardial effusion", "joint effusion"),
        *("bone lesion", "osseous lesion", "breast mass", "lead placement", "vertebral body collapse"),
        *("pleural line", "nipple shadow", "tube feeding", "bone infarct", "bony lesion", "bone density"),
        *("heart failure symptoms", "lead apron", "pericardial effusions", "skin fold", "skin folds"),
    ),
}

ORGANS: dict[str, tuple[str, ...]] = {
    "Cardiomegaly": (
        *("heart", "heart size", "cardiac silhouette", "cardiac size", "heart shadow", "cardiac shadow"),
        *("cardiac contour", "cardiac contours", "heart contour", "cardiac", "ventricle", "cardiopericardial"),
    ),
    "Enlarged Cardiomediastinum": (
        *("mediastinum", "mediastinal", "cardiomediastinal", "cardiomediastinum", "cardio - mediastinal"),
        *("mediastinal contour", "mediastinal contours", "mediastinal silhouette", "cardiomediastinal silhouette"),
        *("cardiomediastinal contour", "cardiomediastinal contours", "superior mediastinum"),
    ),
    OTHER: (
        *("aorta", "aortic", "hila", "hilum", "hilar", "artery", "arteries", "pulmonary artery", "thyroid", "spleen"),
        *("liver", "azygos", "node", "nodes", "vein", "vasculature", "vascularity", "vessels", "stomach", "markings"),
        *("lung", "lungs", "interstitial", "pulmonary vasculature", "bowel", "fissure", "osseous", "bony", "spine"),
    ),
}
"""What can be large. A state of size belongs to the nearest organ of its sentence."""

STATES: dict[str, tuple[str, ...]] = {
    "large": (
        *("enlarged", "enlargement", "widened", "widening", "prominent", "prominence", "large", "dilated", "enlarging"),
        *("increased", "increased in size", "above normal in size", "generous", "larger than normal"),
    ),
    "borderline": (
        *("borderline", "borderline enlarged", "borderline prominent", "borderline in size", "borderline size"),
        *("borderline enlargement", "mildly prominent", "slightly prominent"),
    ),
    "normal": (
        *("normal", "within normal limits", "unremarkable", "top normal", "top normal in size", "normal in size"),
        *("not enlarged", "not significantly enlarged", "not grossly enlarged", "not widened", "not dilated", "wnl"),
        *("upper limits of normal", "upper limit of normal", "upper normal", "normal limits", "not prominent"),
    ),
}
"""Sizes of an organ: large → present, borderline → uncertain, normal → absent."""

BRIDGE = frozenset(
    {
        *("is", "are", "was", "were", "be", "been", "has", "have", "appears", "appear", "appeared", "remains"),
        *("remain", "again", "mildly", "moderately", "markedly", "severely", "slightly", "minimally"),
        *("significantly", "grossly", "diffusely", "globally", "stably", "chronically", "somewhat", "overall"),
        *("still", "now", "also", "mild", "moderate", "marked", "severe", "slight", "minimal", "significant"),
        *("gross", "stable", "chronic", "global", "diffuse", "persistent", "size", "silhouette", "silhouettes"),
        *("contour", "contours", "shadow", "shadows", "border", "borders", "in", "of", "the", "to", "and", "or"),
        *("at", "least", "both", "upper", "superior", "left", "right", "transverse", "diameter", "-", ","),
        *("xxxx", "difficult", "evaluate"),
    }
)
"""Words that may stand between an organ and its size: "the heart | remains mildly | enlarged"."""

REACH: dict[tuple[str, str], int] = {
    ("NEGATED_EXISTENCE", "BACKWARD"): 14,
    ("NEGATED_EXISTENCE", "BIDIRECTIONAL"): 6,
    ("POSSIBLE_EXISTENCE", "FORWARD"): 12,
    ("POSSIBLE_EXISTENCE", "BACKWARD"): 8,
    ("POSSIBLE_EXISTENCE", "BIDIRECTIONAL"): 6,
}
"""Tokens that a modifier reaches; a forward negation may govern a list as long as its sentence."""

NEGATION, DOUBT, HISTORY = "NEGATED_EXISTENCE", "POSSIBLE_EXISTENCE", "HISTORICAL"
SCOPE_END, PSEUDO = "SCOPE_END", "PSEUDO"

DROPPED_DEFAULTS = frozenset(
    (
        *("any other", "as well as any", "checked for", "decline", "prophylaxis", "non diagnostic", "no cause of"),
        *("test for", "return", "as needed", "come back for", "ro", "as has", "not significant", "resolved", "free"),
        *("secondary", "patient was not", "was not", "evaluate for", "history", "did not rule out", ": no", ": none"),
    )
)
"""Rules of medspacy's default set, written for clinic notes, that mislead in a radiology report."""

NEGATING = {
    "FORWARD": (
        *("no evidence of", "no evidence for", "no sign of", "no signs of", "without evidence of", "clear without"),
        *("no convincing evidence of", "no definite", "no definite evidence of", "no radiographic evidence of"),
        *("neither", "nor", "absent", "negative for", "exclude", "excludes", "clear of", "free of"),
        *("free from", "resolution of", "interval resolution of", "removal of", "interval removal of"),
        *("clearing of", "rather than", "no longer", "lack of", "devoid of", "never", "withdrawal of", "no obvious"),
    ),
    "BACKWARD": (
        *("is absent", "are absent", "not seen", "not identified", "not visualized", "not demonstrated", "not noted"),
        *("not present", "not evident", "not appreciated", "not observed", "is excluded", "are excluded"),
        *("has resolved", "have resolved", "has cleared", "have cleared", "has been removed", "have been removed"),
        *("is removed", "no longer seen", "no longer visualized", "no longer identified", "no longer present"),
        *("unlikely", "is unlikely", "not suspected", "has completely resolved", "was removed", "were removed"),
        *("have been withdrawn", "has been withdrawn", "not clearly seen", "not definitely seen", "ruled out"),
        *("not apparent", "not detected", "no longer appreciated", "not clearly identified"),
    ),
    "BIDIRECTIONAL": ("resolved",),
}
DOUBTING = {
    "FORWARD": (
        *("may be", "may represent", "may reflect", "may indicate", "may relate to", "may be due to", "may"),
        *("could be", "could represent", "could reflect", "could relate to", "could", "might", "possible", "possibly"),
        *("probable", "probably", "likely", "most likely", "suggest", "suggests", "suggesting", "suggestive of"),
        *("suspicious for", "suspicion of", "suspicion for", "suspected", "concern for", "concerning for"),
        *("worrisome for", "question of", "questionable", "question", "equivocal", "perhaps", "presumed"),
        *("presumably", "borderline", "cannot exclude", "can not exclude", "cannot rule out", "can not rule out"),
        *("not exclude", "difficult to exclude", "differential", "differential diagnosis", "considerations include"),
        *("consider", "or possibly", "rule out", "conceivably", "potentially", "potential"),
        *("subtle suggestion of", "would be difficult to exclude", "evaluate for", "evaluation for", "assess for"),
    ),
    "BACKWARD": (
        *(
            "cannot be excluded",
            "can not be excluded",
            "cannot be entirely excluded",
            "not excluded",
            "not be excluded",
        ),
        *("can not be entirely excluded", "cannot be completely excluded", "can not be completely excluded"),
        *("cannot be ruled out", "can not be ruled out", "not entirely excluded", "is possible", "are possible"),
        *(
            "is suspected",
            "are suspected",
            "is questioned",
            "should be considered",
            "is a consideration",
            "not ruled out",
        ),
        *("is likely", "are likely", "cannot be fully excluded", "can not be fully excluded"),
        *("difficult to exclude", "not be entirely excluded", "remains a possibility", "to be excluded"),
    ),
    "BIDIRECTIONAL": ("versus", "vs", "vs."),
}
PSEUDO_NEGATIONS = (
    *("no change", "no significant change", "no interval change", "no significant interval change", "not changed"),
    *("no change in", "no significant change in", "not significantly changed", "without change", "no new change"),
    *("without significant change", "not increased", "no increase", "no increase in", "not improved"),
    *("no improvement", "no improvement in", "without interval change", "no appreciable change", "no interval"),
    *("no substantial change", "not appreciably changed", "not substantially changed", "no relevant change"),
    *("no decrease", "no decrease in", "no resolution", "not resolved", "has not resolved", "have not resolved"),
    *("not only", "no significant interval", "not well", "no longer intubated", "incompletely resolved"),
    *("not completely resolved", "not fully resolved", "not yet resolved", "no additional", "no other"),
    *("partially resolved",),
)
"""They hold a negating word and deny nothing: "no change in the small effusion"."""

PAST = ("history of", "past history of", "prior history of", "known history of")
"""What the patient once had is not a finding."""

SCOPE_ENDS = (
    *("but", "however", "although", "though", "except", "except for", "other than", "apart from", "aside from"),
    *("there is", "there are", "there has been", "which", "while", "whereas", "with", "yet", "nevertheless"),
    *("now", "and there", "otherwise", "and the", "heart is", "heart size is", "the heart", "lungs are", "the lungs"),
)
"""Where a negation or a doubt stops: "no pneumothorax but a small effusion"."""
