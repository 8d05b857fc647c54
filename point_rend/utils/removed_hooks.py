"""Methods of the stock project that its users override, and that this package lacks."""

from collections.abc import Mapping
from typing import ClassVar


class RemovedHooks:
    """Base of classes that refuse subclasses with methods that nothing would call.

    ``REMOVED`` maps the names of such methods to what is to be overridden instead.
    """

    REMOVED: ClassVar[Mapping[str, str]] = {}

    def __init_subclass__(cls, **kwargs: object) -> None:
        """Check a new subclass.

        Raises:
            TypeError: if it defines or inherits one of the methods.
        """
        super().__init_subclass__(**kwargs)
        for name, instead in cls.REMOVED.items():
            if hasattr(cls, name):
                raise TypeError(
                    f"{cls.__name__}.{name} would never be called: only the heads of Detectron2's "
                    f"own PointRend have this method; override {instead} instead"
                )
