"""An export and clips -> classes, accuracy and rows of an archive, without torch and onnx."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from exporter.inputs.windows import Windows
    from exporter.predict.answers import DEFAULT_TOP, softmax
    from exporter.predict.card import Card
    from exporter.predict.predictor import (
        DEVICES,
        ClassScore,
        Prediction,
        Predictor,
        WindowPrediction,
    )

__all__ = [
    "DEFAULT_TOP",
    "DEVICES",
    "Card",
    "ClassScore",
    "Prediction",
    "Predictor",
    "WindowPrediction",
    "Windows",
    "softmax",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401
    """Import what is offered at its first use: a process that reads clips starts without it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from exporter.inputs import windows
    from exporter.predict import answers, card, predictor

    homes = (predictor, card, answers, windows)
    return next(getattr(home, name) for home in homes if hasattr(home, name))
