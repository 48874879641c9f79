"""Send a clip to a Triton server and print the best classes.

    python examples/client.py gestures_onnx clip.mp4 [HOST:PORT]

`tsformer triton` wrote the model that the server runs. This program needs tsformer and
tritonclient[http]. It reads the clip with the preprocessing of the export, and averages the
logits of its views.
"""

import json
import sys
from pathlib import Path

import tritonclient.http as triton

from exporter.inputs.video import read_clip
from model.preprocessing import Preprocessing

model, path, url = (*sys.argv[1:], "localhost:8000")[:3]
server = triton.InferenceServerClient(url)
config = server.get_model_config(model)
facts = json.loads(config["parameters"]["tsformer"]["string_value"])
frames, channels, height, width = map(int, config["input"][0]["dims"][-4:])
how = Preprocessing.from_dict(facts["preprocessing"])
clip = read_clip(
    Path(path), frames=frames, channels=channels, height=height, width=width, preprocessing=how
)

found: dict[str, list[float]] = {}
for view in clip.array[:, None]:  # (v, 1, f, c, h, w)
    video = triton.InferInput("video", view.shape, "FP32")
    video.set_data_from_numpy(view)
    ranked = triton.InferRequestedOutput("logits", class_count=int(config["output"][0]["dims"][-1]))
    answer = server.infer(model, [video], outputs=[ranked]).as_numpy("logits")
    for text in answer.ravel():  # b"logit:class:label"
        logit, number, *label = text.decode().split(":", 2)
        found.setdefault(label[0] if label else number, []).append(float(logit))
best = sorted(((sum(each) / len(each), name) for name, each in found.items()), reverse=True)
shown = best if facts["task"] == "regression" else best[:5]  # values are all shown, by their number
for logit, name in shown:
    print(f"{logit:8.3f}  {name}")
