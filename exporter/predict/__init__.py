"""An export and clips -> classes, accuracy and rows of an archive, without torch and onnx."""

from exporter.predict.predictor import (
    DEFAULT_TOP,
    DEVICES,
    Card,
    ClassScore,
    Prediction,
    Predictor,
    softmax,
)

__all__ = [
    "DEFAULT_TOP",
    "DEVICES",
    "Card",
    "ClassScore",
    "Prediction",
    "Predictor",
    "softmax",
]
