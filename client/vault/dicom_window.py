"""Stored DICOM values to shades of a screen: modality rescale, VOI window or table, photometric interpretation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from client.vault.pictures import scale_to_8_bit

if TYPE_CHECKING:
    from numpy.typing import NDArray


def shades(values: NDArray[Any], header: Any) -> NDArray[np.uint8]:  # noqa: ANN401 - pydicom's data set
    """Grey [height, width] or RGB [height, width, 3] uint8 from one frame as pydicom decodes it.

    Without a window in the header, grey values are spread over their own range, padding left out.
    """
    from pydicom.pixels import apply_color_lut, apply_modality_lut  # noqa: PLC0415 - an extra

    photometric = str(header.PhotometricInterpretation)
    if photometric == "PALETTE COLOR":
        colours = apply_color_lut(values, header)
        return _top_8_bits(colours, 8 * colours.dtype.itemsize)
    if values.ndim == 3:
        return _top_8_bits(values, int(header.BitsStored))
    grey = _windowed(np.asarray(apply_modality_lut(values, header), np.float64), values, header)
    return 255 - grey if photometric == "MONOCHROME1" else grey


def _windowed(
    rescaled: NDArray[np.float64],
    stored: NDArray[Any],
    header: Any,  # noqa: ANN401 - as above
) -> NDArray[np.uint8]:
    from pydicom.pixels import apply_voi  # noqa: PLC0415 - as above

    tables = header.get("VOILUTSequence")
    if tables:
        bits = int(tables[0].LUTDescriptor[2])
        return _top_8_bits(apply_voi(rescaled.astype(np.int64), header), bits)
    if header.get("WindowCenter") is not None and header.get("WindowWidth") is not None:
        centre, width = (_first(header[name].value) for name in ("WindowCenter", "WindowWidth"))
        return _screen(window(rescaled, centre, width, str(header.get("VOILUTFunction", "LINEAR"))))
    padding = header.get("PixelPaddingValue")
    kept = rescaled if padding is None else np.where(stored == padding, np.nan, rescaled)
    return scale_to_8_bit(kept)


def window(values: NDArray[np.float64], centre: float, width: float, function: str) -> NDArray[np.float64]:
    """0 to 1, by the functions of PS3.3 C.11.2.1.2 and C.11.2.1.3.

    Raises:
        ValueError: A width or function that the standard forbids.

    """
    if not np.isfinite([centre, width]).all():
        raise ValueError("wanted a finite window")
    if function == "SIGMOID" and width > 0:
        return np.asarray(1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -700, 700))))
    if function == "LINEAR_EXACT" and width > 0:
        return np.clip((values - centre) / width + 0.5, 0, 1)
    if function != "LINEAR" or width < 1:
        raise ValueError("wanted a window of the standard's form")
    if width == 1:
        return (values > centre - 0.5).astype(np.float64)
    return np.clip((values - (centre - 0.5)) / (width - 1) + 0.5, 0, 1)


def _screen(shade: NDArray[np.float64]) -> NDArray[np.uint8]:
    return np.rint(shade * 255).astype(np.uint8)


def _top_8_bits(values: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    return _screen(np.clip(np.asarray(values, np.float64) / (2**bits - 1), 0, 1))


def _first(value: Any) -> float:  # noqa: ANN401 - one value or several
    return float(value[0] if isinstance(value, (list, tuple)) or hasattr(value, "__getitem__") else value)
