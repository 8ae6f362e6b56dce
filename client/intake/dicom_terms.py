"""The standard's own words for what an object shows: the only words of a header that may become a caption.

A coded element is free text to whoever fills it in: patients' names and numbers have been found in all of them. So a
value counts only if the standard defines it, and what it does not define is left out.

Sources: PS3.3 C.7.3.1.1.1 (modality), PS3.16 annex L (body parts), PS3.3 C.7.3.1 (laterality), C.8.1.1 and C.8.11.1
(view positions). Blanks and underscores between the parts of a word are overlooked.
"""

from __future__ import annotations

import re
from typing import Final

_MODALITIES: Final = """
AR AS ASMT AU BDUS BI BMD CD CF CFM CP CR CS CT DD DF DG DM DMS DS DX EC ECG EPS ES FA FID FS GM HC HD IO IOL
IVOCT IVUS KER LEN LP LS MA MG MR MS NM OAM OCT OP OPM OPR OPT OPTBSV OPTENF OPV OSS OT PA PT PX RF RG SM SRF
SS ST TG US VA VF XA XAPROTOCOL XC
"""
_BODY_PARTS: Final = """
ABDOMEN ABDOMENPELVIS ACJOINT ADRENAL ANKLE ANUS AORTA ARM AXILLA BACK BILEDUCT BLADDER BRAIN BREAST BRONCHUS
BUTTOCK CALCANEUS CALF CAROTID CEREBELLUM CEREBRALA CERVIX CHEEK CHEST CHESTABDOMEN CHESTABDPELVIS
CIRCLEOFWILLIS CLAVICLE COCCYX COLON CORNEA CORONARYARTERY CSPINE CTSPINE DUODENUM EAR ELBOW ESOPHAGUS
EXTREMITY EYE EYELID FACE FEMUR FETUS FIBULA FINGER FOOT FOREARM FOREFOOT GALLBLADDER HAND HEAD HEADNECK HEART
HINDFOOT HIP HUMERUS IAC ILEUM ILIUM JAW JEJUNUM KIDNEY KNEE LARYNX LEG LIVER LOWERLEG LSPINE LSSPINE LUNG
MANDIBLE MAXILLA MEDIASTINUM MOUTH NECK NECKCHEST NECKCHESTABDOMEN NECKCHESTABDPELV NOSE OPTICCANAL ORBIT
OVARY PANCREAS PAROTID PATELLA PELVIS PENIS PHARYNX PROSTATE RADIUS RECTUM RETINA RIB SACRUM SCALP SCAPULA
SCLERA SCROTUM SHOULDER SIJOINT SINUS SKIN SKULL SPINE SPLEEN SSPINE STERNUM STOMACH SUBMANDIBULAR TESTIS
THIGH THUMB THYMUS THYROID TIBIA TIBIAFIBULA TLSPINE TMJ TOE TONGUE TOOTH TRACHEA TSPINE ULNA UMBILICUS
UPPERARM URETER URETHRA UTERUS VAGINA VULVA WHOLEBODY WRIST ZYGOMA
"""
_VIEWS: Final = """
AP PA LL RL RLD LLD RLO LLO LAO RAO LPO RPO LAT OBL AXIAL TANGENTIAL CC MLO ML LM LMO SIO XCCL XCCM FB CV AT
"""
MODALITIES: Final = frozenset(_MODALITIES.split())
BODY_PARTS: Final = frozenset(_BODY_PARTS.split())
LATERALITIES: Final = frozenset({"R", "L", "B", "U"})
VIEWS: Final = frozenset(_VIEWS.split())
CODED: Final = (
    ("Modality", MODALITIES),
    ("BodyPartExamined", BODY_PARTS),
    ("Laterality", LATERALITIES),
    ("ViewPosition", VIEWS),
)
"""Elements and the values that count, in the order of a caption's words."""
_BETWEEN: Final = re.compile(r"[ _]+")


def coded_word(value: str, terms: frozenset[str]) -> str:
    """The term in small letters; empty if the value is none."""
    term = _BETWEEN.sub("", value)
    return term.lower() if term in terms else ""
