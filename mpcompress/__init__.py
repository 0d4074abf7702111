"""MPCompress: neural feature codecs. Importing this package loads neither torch nor numba."""

from mpcompress.errors import MpcompressError

__version__ = "0.1.0"

__all__ = ["MpcompressError", "__version__"]
