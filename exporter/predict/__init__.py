"""An export and clips -> classes, accuracy and rows of an archive, without torch and onnx."""

from exporter.inputs.windows import Windows
from exporter.predict.answers import DEFAULT_TOP, softmax
from exporter.predict.card import Card
from exporter.predict.predictor import DEVICES, ClassScore, Prediction, Predictor, WindowPrediction

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
