"""Time-LLM, its enhanced variant, the models beside it, and the door to a trained run.

``from models import Forecaster``: a run that was trained, loaded to forecast tables; how a table is read,
`ReadOptions` says. The models themselves are in modules of their own, by name in `models.registry`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models.forecaster import Forecaster as Forecaster
    from models.trained import ReadOptions as ReadOptions
else:

    def __getattr__(name: str) -> Any:
        """What the door offers, imported when it is asked for: training needs none of it."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from models import forecaster

        return getattr(forecaster, name)


__all__ = ["Forecaster", "ReadOptions"]
