"""A stand-in for Triton's ONNX Runtime backend, which no wheel contains; it has the same name.

It runs in the server's environment. It runs all requests of a batch together.
"""

from pathlib import Path

import numpy as np
import onnxruntime
import triton_python_backend_utils as triton


class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        return config  # no completion: config.pbtxt must be sufficient

    def initialize(self, args):
        path = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        self.inputs = [value.name for value in self.session.get_inputs()]
        self.outputs = [value.name for value in self.session.get_outputs()]

    def execute(self, requests):
        arrays = [
            [triton.get_input_tensor_by_name(request, name).as_numpy() for request in requests]
            for name in self.inputs
        ]
        feed = {name: np.concatenate(of) for name, of in zip(self.inputs, arrays, strict=True)}
        results = self.session.run(self.outputs, feed)
        ends = np.cumsum([len(array) for array in arrays[0]])[:-1]
        parts = zip(*(np.split(result, ends) for result in results), strict=True)
        return [self._response(part) for part in parts]

    def _response(self, results):
        named = zip(self.outputs, results, strict=True)
        return triton.InferenceResponse([triton.Tensor(name, result) for name, result in named])
