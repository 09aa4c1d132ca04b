"""The words of DICOM headers, each turned into one of a fixed list: body part, view, kind of object.

What is not in a list comes out as "another part", "unknown modality" or "": a header's own words, in which people
write names, never reach a table, a count or a log.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

CHEST = "CHEST"
OTHER_PART = "another part"
_CHEST_WORDS = ("CHEST", "THORAX", "THORACIC CAVITY", "TORAX", "TÓRAX", "LUNG", "CXR", "POUMON")
# Defined terms of BodyPartExamined (DICOM PS3.16, annex L) that radiography departments use.
_PARTS = (
    *("ABDOMEN", "ANKLE", "ARM", "BREAST", "CALCANEUS", "CLAVICLE", "COCCYX", "CSPINE", "ELBOW", "EXTREMITY", "FEMUR"),
    *("FINGER", "FOOT", "FOREARM", "HAND", "HEAD", "HIP", "HUMERUS", "JAW", "KNEE", "LEG", "LSPINE", "NECK", "PELVIS"),
    *("RIB", "SACRUM", "SCAPULA", "SHOULDER", "SKULL", "SPINE", "STERNUM", "TIBIA", "TOE", "TSPINE", "WRIST"),
)
_LONGEST_FIRST = sorted(_PARTS, key=len, reverse=True)

MODALITIES = frozenset(
    {
        *("AU", "BI", "BMD", "CR", "CT", "CTPROTOCOL", "DG", "DOC", "DX", "ECG", "EPS", "ES", "FID"),
        *("GM", "HC", "HD", "IO", "IVOCT", "IVUS", "KER", "KO", "LEN", "LS", "M3D", "MG", "MR", "NM"),
        *("OAM", "OCT", "OP", "OPM", "OPT", "OPTBSV", "OPTENF", "OPV", "OSS", "OT", "PLAN", "POS"),
        *("PR", "PT", "PX", "REG", "RESP", "RF", "RG", "RTDOSE", "RTIMAGE", "RTINTENT", "RTPLAN"),
        *("RTRAD", "RTRECORD", "RTSEGANN", "RTSTRUCT", "RWV", "SEG", "SM", "SMR", "SR", "SRF"),
        *("STAIN", "TEXTUREMAP", "TG", "US", "VA", "XA", "XAPROTOCOL", "XC"),
    }
)
UNKNOWN_MODALITY = "unknown modality"
_IMAGES = "1.2.840.10008.5.1.4.1.1."
_MODALITY_OF_CLASS = {"1": "CR", "1.1": "DX", "1.1.1": "DX", "2": "CT", "4": "MR", "128": "PT"}
DICOMDIR, FOR_PROCESSING, LOCALIZER = "DICOMDIR", "FOR PROCESSING", "localizer"
_FOR_PROCESSING_CLASS = _IMAGES + "1.1.1"
# Objects that are no pictures, by the first number after the common prefix.
_OBJECTS = {
    "9": "waveform",
    "11": "PR",
    "66": "SEG",
    "67": "RWV",
    "88": "SR",
    "104": "PDF",
    "481": "RT",
}
_KO_CLASS = _IMAGES + "88.59"

FRONTAL = frozenset({"PA", "AP", "FRONTAL"})
LATERAL = frozenset({"LATERAL", "LL", "RL"})
_POSITIONS = {
    **{name: name for name in ("PA", "AP", "LL", "RL", "LLD", "RLD", "LLO", "RLO", "LAO", "RAO", "LPO", "RPO")},
    **{name: name for name in ("FRONTAL", "LATERAL", "OBLIQUE", "DECUBITUS", "LORDOTIC")},
    **{"LAT": "LATERAL", "L": "LL", "R": "RL"},
}
_DECUBITUS, _OBLIQUE = re.compile(r"\bDECUB\w*"), re.compile(r"\b(?:OBLI\w*|OBL|[LR][AP]O)\b")
_LORDOTIC = re.compile(r"\b(?:AP )?LORDOTIC\b")
_PA = re.compile(r"\bP\.?[ /-]?A\b|\bPOSTERO?[ -]?ANTERIOR|\bD\.?V\b")
_AP = re.compile(r"\bA\.?[ /-]?P\b|\bANTERO?[ -]?POSTERIOR")
_LATERAL = re.compile(r"\b(?:[LR][ -]?)?LAT(?:ERAL|L|ERALE?|ERALIS)?\b|\bPROFIL\w*|\bSEITLICH\b|\bLL\b")
_FRONTAL = re.compile(r"\bFRONTAL\b|\bFACE\b")


def body_part(said: str) -> str:
    """`CHEST`, another part by its defined term, `another part`; "" if nothing was said."""
    word = re.sub(r"[^A-ZÓÜÖÄ]+", " ", said.upper()).strip()
    if not word or word in ("UNKNOWN", "NONE", "UNDEFINED", "DEFAULT", "OTHER", "NA", "N A"):
        return ""
    part = next((name for name in _LONGEST_FIRST if name in word.replace(" ", "")), None)
    # Some exports join parts (CHESTABDOMEN, CHEST-RIBS): with the abdomen or pelvis it is not a chest film.
    if any(name in word for name in _CHEST_WORDS) and "ABD" not in word and "PELV" not in word:
        return CHEST
    return part or OTHER_PART


def position_of(view: str, orientation: Sequence[str], words: Sequence[str]) -> str:
    """The view position: by ViewPosition, else by PatientOrientation, else by the words about the series.

    Returns:
        PA, AP, FRONTAL (which of the two is unsaid), LATERAL, LL, RL, a decubitus or oblique code; "" if unknown.
    """
    if found := _POSITIONS.get(view.upper().strip()) or _in_words(view):
        return found
    if len(orientation) == 2:
        rows, columns = (value[:1] for value in orientation)
        if columns in ("F", "H") and rows in ("L", "R"):
            # A frontal film's words may still say which way the rays went.
            said = {found for text in words if (found := _in_words(text)) in FRONTAL}
            return said.pop() if len(said) == 1 else "FRONTAL"
        if columns in ("F", "H") and rows in ("A", "P"):
            return "LATERAL"
    said = {found for text in words if (found := _in_words(text))}
    if said <= FRONTAL and len(said) > 1:
        said -= {"FRONTAL"}
    return said.pop() if len(said) == 1 else ""


def _in_words(text: str) -> str:
    """The one position that a text names; "" if it names none, or several ("PA and lateral")."""
    text = re.sub(r"[_,;:()]+", " ", text.upper())
    if _DECUBITUS.search(text):
        return "DECUBITUS"
    if _OBLIQUE.search(text):
        return "OBLIQUE"
    if _LORDOTIC.search(text):
        return "LORDOTIC"
    pa, ap, lateral = (bool(pattern.search(text)) for pattern in (_PA, _AP, _LATERAL))
    if lateral:
        return "" if pa or ap else "LATERAL"
    if pa or ap:
        return "" if pa and ap else "PA" if pa else "AP"
    return "FRONTAL" if _FRONTAL.search(text) else ""


def side_of(position: str) -> str:
    """`frontal`, `lateral` or `other` (which includes an unknown position)."""
    return "frontal" if position in FRONTAL else "lateral" if position in LATERAL else "other"


def modality_code(said: str, sop_class: str) -> str:
    """A DICOM modality code; from the object's class if none is said; `unknown modality` for anything else."""
    code = said.upper()
    if code in MODALITIES:
        return code
    if code:
        return UNKNOWN_MODALITY
    rest = sop_class.removeprefix(_IMAGES)
    return _MODALITY_OF_CLASS.get(rest, _MODALITY_OF_CLASS.get(rest.rpartition(".")[0], UNKNOWN_MODALITY))


def kind_of_object(sop_class: str, *, image_type: Sequence[str], intent: str) -> str:
    """ "" for a picture that may be a film; else what the object is, for the count of what is left out."""
    if sop_class == _KO_CLASS:
        return "KO"
    if sop_class.startswith(_IMAGES) and (found := _OBJECTS.get(sop_class.removeprefix(_IMAGES).partition(".")[0])):
        return found
    if LOCALIZER.upper() in image_type or "SCOUT" in image_type:
        return LOCALIZER
    if intent.upper() == FOR_PROCESSING or (sop_class == _FOR_PROCESSING_CLASS and not intent):
        return FOR_PROCESSING
    return ""
