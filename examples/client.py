"""Send a clip to a Triton server and print the best classes with their scores.

    python examples/client.py gestures_onnx clip.mp4 [HOST:PORT]

`tsformer triton` wrote the model that the server runs. This program needs tsformer and
tritonclient[http]. It reads the clip with the preprocessing of the export, asks for each of its
views, and averages them as `tsformer predict` does.
"""

import json
import sys
from pathlib import Path

import numpy as np
import tritonclient.http as triton

from exporter.inputs.video import read_clip
from exporter.predict.answers import DEFAULT_TOP, order_of, scores_of
from model.preprocessing import Preprocessing

model, path, url = (*sys.argv[1:], "localhost:8000")[:3]
server = triton.InferenceServerClient(url)
config = server.get_model_config(model)
facts = json.loads(config["parameters"]["tsformer"]["string_value"])
frames, channels, height, width = map(int, config["input"][0]["dims"][-4:])
classes = next(int(each["dims"][-1]) for each in config["output"] if each["name"] == "logits")
how = Preprocessing.from_dict(facts["preprocessing"])
clip = read_clip(
    Path(path), frames=frames, channels=channels, height=height, width=width, preprocessing=how
)

logits, labels = np.empty((len(clip.array), classes)), list(map(str, range(classes)))
for place, view in enumerate(clip.array):
    video = triton.InferInput("video", (1, *view.shape), "FP32")
    video.set_data_from_numpy(view[None])
    ranked = triton.InferRequestedOutput("logits", class_count=classes)
    answer = server.infer(model, [video], outputs=[ranked]).as_numpy("logits")
    for text in answer.ravel():  # b"logit:class:label"
        logit, number, *label = text.decode().split(":", 2)
        logits[place, int(number)] = float(logit)
        labels[int(number)] = label[0] if label else number
scores = scores_of(logits, facts["task"], how.views.average)
for number in order_of(scores, facts["task"], DEFAULT_TOP):
    print(f"{scores[number]:9.6f}  {labels[number]}")
