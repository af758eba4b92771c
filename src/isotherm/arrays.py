"""Array types, and the legend of the shape suffixes that names carry throughout.

K kinds (prefill, decode) · S slices of a window, or slots of a rank beside G · L layers ·
E logical experts · P slots of a layer over all ranks · G ranks · N nodes · T tokens · W words
"""

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

BoolArray = NDArray[np.bool_]
Int32Array = NDArray[np.int32]
Int64Array = NDArray[np.int64]
FloatArray = NDArray[np.float64]

_Scalar = TypeVar("_Scalar", bound=np.generic)


def frozen(array: Any, dtype: type[_Scalar]) -> NDArray[_Scalar]:
    """A read-only C-contiguous copy of ``array`` as ``dtype``: what an immutable noun holds."""
    copy = np.array(array, dtype=dtype, order="C")
    copy.flags.writeable = False
    return copy
