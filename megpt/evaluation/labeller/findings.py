"""The words that name an observation, an organ or a size: the labeller's dictionary of findings.

Phrases are templates (see `phrases.expand`) and lower case; a longer phrase wins over a shorter one inside it.
Compared with a classifier trained on radiologists' labels (CheXbert) this is a dictionary: it knows what is written here.
"""

from __future__ import annotations

OTHER = "Other Finding"
"""Abnormal, but none of the 14: it only rules out "No Finding", as the CheXpert labeller has it."""

IGNORED = "Ignored"
"""Phrases that hold an observation's word and mean something else ("mass effect")."""

MENTIONS: dict[str, tuple[str, ...]] = {
    "Atelectasis": (
        *("atelectasis", "atelectases", "atelectatic", "atelect", "subsegmental collapse", "microatelectasis"),
        *("(lobar|lobe|lung|segmental|partial|complete) collapse", "collapsed (lung|lobe)", "(lung|lobe) is collapsed"),
        "collapse of the (left|right|) (upper|middle|lower|) (lung|lobe)",
        *("collapse of (left|right) (upper|middle|lower) lobe", "(rll|lll|rul|lul|rml) collapse"),
    ),
    "Cardiomegaly": (
        *("cardiomegaly", "cardiomeg", "cardiac enlargement", "enlargement of (the|) (heart|cardiac silhouette)"),
        *("heart enlargement", "megalocardia"),
    ),
    "Consolidation": ("consolidation", "consolidations", "consolidative", "consolidated", "consolidating", "consol"),
    "Edema": (
        *("(o|)edema", "oedema", "heart failure", "chf", "cardiac (failure|decompensation)", "cardiac insufficiency"),
        *("(vascular|pulmonary|venous|interstitial|hilar|cardiac) congestion", "(fluid|volume) overload"),
        *("(vascular|venous) engorgement", "congestive changes", "kerley (b|) lines", "cephalization"),
        *("vascular redistribution", "interstitial fluid", "congestion"),
    ),
    "Enlarged Cardiomediastinum": (
        *("mediastinal (widening|enlargement|fullness|prominence)", "(widening|enlargement) of the mediastinum"),
        *("widened mediastinum", "cardiomediastinal enlargement", "enlarged cardiomediastinum"),
        *("(widened|enlarged) mediastinal silhouette", "paratracheal (fullness|widening)"),
    ),
    "Fracture": ("fracture", "fractures", "fractured", "fracture deformity", "fracture deformities"),
    "Lung Lesion": (
        *("nodule", "nodules", "micronodule", "micronodules", "mass", "masses", "nodularity", "neoplasm", "neoplasms"),
        "(nodular|masslike|mass like|round|rounded) (opacity|opacities|density|densities|lesion|focus|foci)",
        *("(lung|pulmonary|cavitary|focal|focal lung|mass|parenchymal) (lesion|lesions)", "cavitation", "cavity"),
        *("carcinoma", "tumor", "tumors", "tumour", "malignancy", "metastasis", "metastases", "metastatic disease"),
        *("lung cancer", "metastatic (lesion|lesions|nodules)", "neoplastic process", "coin lesion", "cavities"),
    ),
    "Lung Opacity": (
        *("opacity", "opacities", "opacification", "opacifications", "opacified", "infiltrate", "infiltrates"),
        *("infiltration", "(airspace|air space) (disease|process|density|densities|opacity|opacities)", "infiltrative"),
        "interstitial (disease|lung disease|prominence|thickening|infiltrate|infiltrates|opacities|opacity)",
        *("(prominent|increased|coarse|coarsened) interstitial markings", "interstitial (scarring|fibrosis)"),
        *("reticular pattern", "reticulation", "scar", "scars", "scarring", "peribronchial (thickening|cuffing)"),
        *("(streaky|parenchymal|patchy|hazy|basilar|bibasilar|linear|lung) (density|densities)", "air bronchograms"),
        *("(ground glass|groundglass|hazy) (opacity|opacities|attenuation|)", "ggo", "infilt", "cicatrix"),
        *("reticulonodular (pattern|opacities|markings)",),
    ),
    "Pleural Effusion": (
        *("effusion", "effusions", "pleural fluid", "hydropneumothorax", "hemothorax", "haemothorax", "hydrothorax"),
        *("hemopneumothorax", "hydropneumothoraces", "empyema", "effus", "pleural (liquid|collection|collections)"),
        *("fluid in the (right|left|) (minor|major|pleural|) (fissure|space)", "chylothorax"),
    ),
    "Pleural Other": (
        *("(pleural|pleuroparenchymal|pleuro parenchymal|apical pleural) (thickening|scarring|scar|scars)", "fibrothorax"),
        *("(pleural|) (plaque|plaques)", "pleural (calcification|calcifications|based thickening|nodularity)"),
        *("apical (thickening|cap|capping|pleuroparenchymal thickening)", "(calcified|) pleural (plaque|plaques)"),
        *("thickening of the (right|left|) (apical|) pleura", "pleural (disease|reaction|mass|fibrosis)"),
    ),
    "Pneumonia": (
        *("pneumonia", "pneumonias", "bronchopneumonia", "infection", "infections", "pna", "pneumonic"),
        *("infectious (process|disease|etiology|infiltrate|consolidation)", "pneumonitis", "infectious"),
    ),
    "Pneumothorax": (
        *("pneumothorax", "pneumothoraces", "pneumothoraxes", "pneumothorace", "ptx", "pthx", "ptxs"),
        *("hydropneumothorax", "hydropneumothoraces", "hemopneumothorax", "pneumo thorax"),
    ),
    "Support Devices": (
        *("pacemaker", "pacemakers", "pacer", "pacers", "icd", "aicd", "ppm", "defibrillator", "generator", "picc"),
        *("(pacing|pacer|pacemaker|icd) (lead|leads|wire|wires|device)", "picc (line|lines|catheter)", "piccs"),
        *("(central|central venous|venous|subclavian|jugular|ij|dialysis|arterial|support) (line|lines)", "cvc", "cvl"),
        *("catheter", "catheters", "permcath", "(port a|porta) cath", "portacath", "port", "ports", "mediport"),
        *("(infusion|chest|medi) port", "tube", "tubes", "ett", "ngt", "ogt", "dobhoff", "swan ganz", "tracheostomy"),
        *("tracheotomy", "cannula", "lead", "leads", "wire", "wires", "stent", "stents", "drain", "drains", "hardware"),
        *("(support|monitoring|assist|ventricular assist|) (device|devices|apparatus)", "lvad", "iabp", "ecmo", "tavr"),
        "(prosthetic|mechanical|artificial|bioprosthetic|replaced) (aortic|mitral|heart|cardiac|) (valve|valves)",
        *("valve (replacement|prosthesis|repair|annuloplasty)", "valvular prosthesis", "balloon pump", "arthroplasty"),
        *("lines and tubes", "tubes and lines", "lines", "prosthesis", "prostheses", "annuloplasty (ring|)", "stimulator"),
        *("(surgical|metallic|vascular|mediastinal|cabg|hilar|)  (clip|clips)", "staple line", "(surgical|) staples"),
        *("(surgical|) (suture|sutures)", "(suture|surgical) material", "(fixation|metallic|orthopedic) (plate|plates)"),
        *("(fixation|) (screw|screws|rod|rods)", "(embolization|) (coil|coils)", "spinal (fusion|fixation)", "ett tube"),
        *("(cervical|anterior|posterior|lumbar|thoracic) fusion", "tubing", "port catheter", "loop recorder", "filter"),
        *("sternotomy (wire|wires|sutures|clips|xxxx)", "cerclage", "introducer", "sheath", "feeding tube", "impella"),
    ),
    OTHER: (
        *("emphysema", "emphysematous", "copd", "hyperinflation", "hyperinflated", "hyperexpansion", "hyperexpanded"),
        *("hernia", "granuloma", "granulomas", "granulomatous (infection|disease|)", "granulomata", "scoliosis"),
        *("kyphosis", "kyphotic", "scoliotic", "osteopenia", "osteopenic", "dextroscoliosis", "levoscoliosis"),
        "(calcified|densely calcified|partially calcified) (lung|pulmonary|hilar|) (nodule|nodules|mass)",
        *("calcified nodular (density|densities|opacity|opacities)", "calcified (opacity|density|densities|lesion)"),
        *("degenerative", "spondylosis", "osteophyte", "osteophytes", "calcification", "calcifications", "calcified"),
        *("atherosclerosis", "atherosclerotic", "tortuous", "tortuosity", "ectatic", "aneurysm", "bronchitis"),
        *("bronchiectasis", "bullae", "bulla", "bullous", "blunting", "blunted", "elevation", "eventration"),
        *("fibrosis", "pneumomediastinum", "pneumoperitoneum", "deformity", "volume loss", "aspiration", "elevated"),
        *("subcutaneous emphysema", "arthritic", "lymphadenopathy", "adenopathy", "arthritis", "sclerosis"),
        *("hypertension", "bronchiolitis", "hyperlucent", "hyperlucency", "flattening", "flattened", "kyphoscoliosis"),
    ),
    IGNORED: (
        *("mass effect", "(soft tissue|subcutaneous|periorbital) (o|)edema", "(pericardial|joint) (effusion|effusions)"),
        *("(bone|osseous|bony|breast|lytic|sclerotic|blastic) (lesion|lesions|mass|masses)", "(lead|tube) placement"),
        *("vertebral (body|) collapse", "collapse of the vertebral body", "pleural line", "nipple (shadow|shadows)"),
        *("tube feeding", "bone (infarct|density)", "heart failure symptoms", "lead apron", "(skin|bowel) (fold|folds)"),
        *("body mass", "muscle mass", "mass index", "(port|lead) site", "overlying (wires|leads|lines)", "joint line"),
        *("infection control", "(lines|tubes) are not well seen", "(ekg|ecg|cardiac monitoring) (lead|leads|wire|wires)"),
        *("(septal|fissural|paratracheal|skin|curvilinear|linear) lines", "midclavicular lines", "air filled cavity"),
        *("(thoracic|chest|pleural|abdominal|oral|peritoneal) cavity", "(pleural|thoracic) cavities", "air filter"),
        *("tail (shadow|shadows)", "chest tube (site|tract)", "nerve sheath", "heart failure clinic", "bone mass"),
    ),
}

ORGANS: dict[str, tuple[str, ...]] = {
    "Cardiomegaly": (
        *("(heart|cardiac) (size|silhouette|shadow|contour|contours|)", "cardiopericardial", "cardiac silhouette size"),
        *("ventricle", "cardiothymic", "cardiothoracic ratio", "(size|contour) of the heart"),
    ),
    "Enlarged Cardiomediastinum": (
        *("mediastinum", "mediastinal", "cardiomediastinal", "cardiomediastinum", "(cardio|superior) mediastinum"),
        *("cardio mediastinal", "(mediastinal|cardiomediastinal) (contour|contours|silhouette|silhouettes)"),
        "cardiomediastinal (size|shadow)",
    ),
    OTHER: (
        *("aorta", "aortic", "hila", "hilum", "hilar", "artery", "arteries", "pulmonary artery", "thyroid", "spleen"),
        *("liver", "azygos", "node", "nodes", "vein", "vasculature", "vascularity", "vessels", "stomach", "markings"),
        *("lung", "lungs", "interstitial", "pulmonary vasculature", "bowel", "fissure", "osseous", "bony", "spine"),
        *("trachea", "pulmonary trunk", "pulmonary arterial", "lung volumes"),
    ),
}
"""What can be large. A size belongs to the nearest organ of its sentence."""

LARGE, BORDERLINE, NORMAL = "large", "borderline", "normal"

SIZES: dict[str, tuple[str, ...]] = {
    LARGE: (
        *("enlarged", "enlargement", "widened", "widening", "prominent", "prominence", "large", "dilated", "enlarging"),
        *("increased (in size|)", "above normal in size", "generous", "larger than normal", "big", "enlarge"),
        "(mild|moderate|marked|severe) enlargement",
    ),
    BORDERLINE: (
        *("borderline (enlarged|prominent|in size|size|enlargement|large|)", "(mildly|slightly) prominent"),
        *("upper limits of normal to mildly enlarged", "mild prominence"),
    ),
    NORMAL: (
        *("normal (in size|)", "within normal limits", "unremarkable", "top normal (in size|)", "wnl", "normal sized"),
        *("not (significantly|grossly|) enlarged", "not (widened|dilated|prominent)", "(upper|) normal limits"),
        *("upper (limits|limit|) (of|) normal", "(high|upper) normal", "at the upper limit", "upper limits"),
    ),
}
"""Sizes of an organ: large → present, borderline → uncertain, normal → absent."""

BRIDGE = frozenset(
    (
        *("is", "are", "was", "were", "be", "been", "has", "have", "appears", "appear", "appeared", "remains"),
        *("remain", "again", "mildly", "moderately", "markedly", "severely", "slightly", "minimally", "massively"),
        *("significantly", "grossly", "diffusely", "globally", "stably", "chronically", "somewhat", "overall"),
        *("still", "now", "also", "mild", "moderate", "marked", "severe", "slight", "minimal", "significant"),
        *("gross", "stable", "chronic", "global", "diffuse", "persistent", "size", "silhouette", "silhouettes"),
        *("contour", "contours", "shadow", "shadows", "border", "borders", "in", "of", "the", "to", "and", "or"),
        *("at", "least", "both", "upper", "superior", "left", "right", "transverse", "diameter", ",", ":"),
        *("xxxx", "difficult", "evaluate", "unchanged", "probably", "not", "mid"),
    )
)
"""Words that may stand between an organ and its size: "the heart | remains mildly | enlarged"."""

UNDERSTOOD = (
    *("normal", "clear", "unremarkable", "negative", "intact", "no (acute|active|significant|evidence|focal|change)"),
    *("within normal limits", "wnl", "no (abnormality|abnormalities|disease|finding|findings|cardiopulmonary)"),
    *("well (expanded|aerated|inflated)", "unchanged", "stable", "aerated", "grossly clear", "without acute"),
)
"""Statements that a film is normal: without one of these or a finding's name, a text is no report."""
