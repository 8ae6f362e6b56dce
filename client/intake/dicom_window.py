"""Stored DICOM values to shades of a screen: modality rescale, VOI window or table, photometric interpretation.

Enhanced objects keep rescale and window in functional groups (PS3.3 C.7.6.16): what the frame's own group says comes
before what all frames share, and that before the object's top level.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from client.intake.pictures import scale_to_8_bit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

_FUNCTIONS: Final = ("LINEAR", "LINEAR_EXACT", "SIGMOID")
_PADDING: Final = ("PixelPadding", "FloatPixelPadding", "DoubleFloatPixelPadding")


def shades(values: NDArray[Any], header: Any, index: int = 0) -> NDArray[np.uint8]:  # noqa: ANN401 - pydicom's data set
    """Grey [height, width] or RGB [height, width, 3] uint8 from one frame as pydicom decodes it.

    Without a window that the standard allows, grey values are spread over their own range. Padding is left out of that
    range and is black, also where MONOCHROME1 would make it white.
    """
    from pydicom.pixels import apply_color_lut  # noqa: PLC0415 - an extra

    photometric = str(header.PhotometricInterpretation)
    if photometric == "PALETTE COLOR":
        colours = apply_color_lut(values, header)
        return _top_8_bits(colours, 8 * colours.dtype.itemsize)
    if values.ndim == 3:
        return _top_8_bits(values, int(header.BitsStored))
    padding = _padding(values, header)
    grey = _windowed(_rescaled(values, header, index), padding, header, index)
    return np.where(padding, np.uint8(0), 255 - grey if photometric == "MONOCHROME1" else grey)


def window(values: NDArray[np.float64], centre: float, width: float, function: str) -> NDArray[np.float64]:
    """0 to 1, by the functions of PS3.3 C.11.2.1.2 and C.11.2.1.3.

    Raises:
        ValueError: A width or function that the standard forbids.

    """
    if not _is_allowed(centre, width, function):
        raise ValueError("wanted a window of the standard's form")
    if function == "SIGMOID":
        return np.asarray(1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -700, 700))))
    if function == "LINEAR_EXACT":
        return np.clip((values - centre) / width + 0.5, 0, 1)
    if width == 1:
        return (values > centre - 0.5).astype(np.float64)
    return np.clip((values - (centre - 0.5)) / (width - 1) + 0.5, 0, 1)


def _is_allowed(centre: float, width: float, function: str) -> bool:
    narrowest_is_met = width >= 1 if function == "LINEAR" else width > 0
    return function in _FUNCTIONS and math.isfinite(centre) and math.isfinite(width) and narrowest_is_met


def _functional(header: Any, index: int, sequence: str) -> Any:  # noqa: ANN401 - as above
    """The frame's own item of a functional group, else the shared one, else the object itself."""
    own, shared = (
        header.get(name) or () for name in ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence")
    )
    groups = (*own[index : index + 1], *shared[:1])
    return next((items[0] for group in groups if (items := group.get(sequence))), header)


def _rescaled(values: NDArray[Any], header: Any, index: int) -> NDArray[np.float64]:  # noqa: ANN401 - as above
    from pydicom.pixels import apply_modality_lut  # noqa: PLC0415 - an extra

    source = _functional(header, index, "PixelValueTransformationSequence")
    if source is header and header.get("ModalityLUTSequence"):
        return np.asarray(apply_modality_lut(values, header), np.float64)
    slope, intercept = (_numbers(source, name) for name in ("RescaleSlope", "RescaleIntercept"))
    factor = slope[0] if slope and math.isfinite(slope[0]) and slope[0] != 0 else 1.0
    offset = intercept[0] if intercept and math.isfinite(intercept[0]) else 0.0
    return np.asarray(values, np.float64) * factor + offset


def _windowed(
    rescaled: NDArray[np.float64],
    padding: NDArray[np.bool_],
    header: Any,  # noqa: ANN401 - as above
    index: int,
) -> NDArray[np.uint8]:
    from pydicom.pixels import apply_voi  # noqa: PLC0415 - as above

    tables = header.get("VOILUTSequence")
    if tables:
        bits = int(tables[0].LUTDescriptor[2])
        return _top_8_bits(apply_voi(rescaled.astype(np.int64), header), bits)
    for centre, width, function in _windows(_functional(header, index, "FrameVOILUTSequence")):
        return _screen(window(rescaled, centre, width, function))
    return scale_to_8_bit(np.where(padding, np.nan, rescaled))


def _windows(source: Any) -> Iterator[tuple[float, float, str]]:  # noqa: ANN401 - as above
    """Those that the standard allows, in order: a width of 0 is how much equipment says that it has no window."""
    function = str(source.get("VOILUTFunction") or "").strip().upper() or "LINEAR"
    for centre, width in zip(_numbers(source, "WindowCenter"), _numbers(source, "WindowWidth"), strict=False):
        if _is_allowed(centre, width, function):
            yield centre, width, function


def _padding(values: NDArray[Any], header: Any) -> NDArray[np.bool_]:  # noqa: ANN401 - as above
    """Stored values that stand for no measurement (PS3.3 C.7.5.1.1.2): one, or all between two."""
    for name in _PADDING:
        limits = (*_numbers(header, f"{name}Value"), *_numbers(header, f"{name}RangeLimit"))
        if limits:
            found = [_as_stored(limit, values) for limit in limits]
            return np.asarray((values >= min(found)) & (values <= max(found)))
    return np.zeros(values.shape, np.bool_)


def _as_stored(limit: float, values: NDArray[Any]) -> float:
    """Some equipment writes a signed value's bits as an unsigned number, or the other way round."""
    if values.dtype.kind not in "iu" or np.iinfo(values.dtype).min <= limit <= np.iinfo(values.dtype).max:
        return limit
    return limit - math.copysign(2.0 ** (8 * values.dtype.itemsize), limit)


def _numbers(source: Any, name: str) -> tuple[float, ...]:  # noqa: ANN401 - as above
    """An element's values; none where it is absent, empty or no number."""
    try:
        value = source.get(name)
        if value is None:
            return ()
        several = value if hasattr(value, "__iter__") and not isinstance(value, (str, bytes)) else (value,)
        return tuple(float(each) for each in several)
    except (TypeError, ValueError, OverflowError):
        return ()


def _screen(shade: NDArray[np.float64]) -> NDArray[np.uint8]:
    return np.rint(shade * 255).astype(np.uint8)


def _top_8_bits(values: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    return _screen(np.clip(np.asarray(values, np.float64) / (2**bits - 1), 0, 1))
