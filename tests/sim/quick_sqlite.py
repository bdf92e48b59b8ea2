"""`sqlite3` without its Python half, and without `functools`: importing these takes most of it."""

import sys

if "functools" in sys.modules:
    import _sqlite3
else:
    from _functools import _lru_cache_wrapper

    class _Functools:
        """What the C half wants of `functools`: a cache for its statements."""

        @staticmethod
        def lru_cache(maxsize=128, typed=False):
            return lambda function: _lru_cache_wrapper(function, maxsize, typed, tuple)

    sys.modules["functools"] = _Functools
    try:
        import _sqlite3
    finally:
        del sys.modules["functools"]

connect, Error = _sqlite3.connect, _sqlite3.Error
