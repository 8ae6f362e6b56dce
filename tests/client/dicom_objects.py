"""DICOM objects made from nothing, full of what must not survive."""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

NAME = "DicomCanary^Name"
PATIENT = "PATIENT-CANARY-77"


def dicom_bytes(seed: int, *, frames: int = 1, pixels: bool = True, syntax: str = "", **elements: Any) -> bytes:
    """A CT slice of 64 by 64 stored values of 12 bits, with a window."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[str(seed)])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    data.PatientName, data.PatientID, data.PatientBirthDate = NAME, PATIENT, "19700102"
    data.InstitutionName, data.StudyDescription = "Canary Hospital", "StudyCanary"
    data.Modality, data.BodyPartExamined, data.AccessionNumber = "CT", "CHEST", "ACC-CANARY-9"
    data.ImageComments = "CommentCanary"
    inner = pydicom.Dataset()
    inner.PatientID = PATIENT
    data.OtherPatientIDsSequence = Sequence([inner])
    data.private_block(0x0099, "CanaryVendor", create=True).add_new(1, "LO", "PrivateCanary")
    data.Rows = data.Columns = 64
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
    data.RescaleSlope, data.RescaleIntercept = "1", "-1024"
    data.WindowCenter, data.WindowWidth = "40", "400"
    if frames > 1:
        data.NumberOfFrames = frames
    if pixels:
        data.PixelData = stored_values(seed, frames).tobytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # values that the standard forbids are wanted here
        for name, value in elements.items():
            setattr(data, name, value)
    buffer = io.BytesIO()
    data.save_as(buffer, enforce_file_format=True)
    return _with_syntax(buffer.getvalue(), syntax) if syntax else buffer.getvalue()


def stored_values(seed: int, frames: int = 1) -> np.ndarray:
    """uint16 [frames, 64, 64] or, for one frame, [64, 64]: smooth, from air to bone."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(700, 1500, (frames, 8, 8))
    values = coarse.repeat(8, axis=1).repeat(8, axis=2).astype(np.uint16)
    return values[0] if frames == 1 else values


def _with_syntax(data: bytes, syntax: str) -> bytes:
    """Claim another transfer syntax; the library itself would refuse to write that."""
    old = ExplicitVRLittleEndian.encode()
    padded = old + b"\0" * (len(old) % 2)
    at = data.index(b"\x02\x00\x10\x00UI")
    length = int.from_bytes(data[at + 6 : at + 8], "little")
    assert data[at + 8 : at + 8 + length] == padded
    new = syntax.encode() + b"\0" * (len(syntax) % 2)
    group = data.index(b"\x02\x00\x00\x00UL")
    size = int.from_bytes(data[group + 8 : group + 12], "little") + len(new) - length
    body = data[: at + 6] + len(new).to_bytes(2, "little") + new + data[at + 8 + length :]
    return body[: group + 8] + size.to_bytes(4, "little") + body[group + 12 :]
