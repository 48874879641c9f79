"""Send requests to a server, several at a time, and record the answers.

    python load.py http|grpc HTTP_PORT,GRPC_PORT MODEL INPUTS.npz REQUESTS CONCURRENCY ANSWERS.npz

Each array of INPUTS is `(n, b, ...)`. If n is smaller than REQUESTS, the script starts again from
the first entry. ANSWERS contains the logits in the order of the requests. The script prints errors
and the server's counts as JSON. It runs in the server's environment.
"""

import asyncio
import importlib
import json
import sys

import numpy as np
import tritonclient.http as http
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

HOST = "127.0.0.1"
TIMEOUT = 60  # seconds


def counts(port, model):
    answer = http.InferenceServerClient(f"{HOST}:{port}").get_inference_statistics(model)
    stats = answer["model_stats"][0]
    return {key: int(stats[key]) for key in ("inference_count", "execution_count")}


async def send(protocol, port, model, inputs, requests, concurrency):
    triton = importlib.import_module(f"tritonclient.{protocol}.aio")
    free, answers, errors = asyncio.Semaphore(concurrency), [None] * requests, []

    async def one(client, index):
        tensors = []
        for name, array in inputs.items():
            value = np.ascontiguousarray(array[index % len(array)])
            tensors.append(triton.InferInput(name, value.shape, np_to_triton_dtype(value.dtype)))
            tensors[-1].set_data_from_numpy(value)
        async with free:
            try:
                result = await client.infer(model, tensors)
                answers[index] = result.as_numpy("logits")
            except InferenceServerException as error:
                errors.append(error.message())

    client = triton.InferenceServerClient(f"{HOST}:{port}")
    try:
        together = asyncio.gather(*(one(client, index) for index in range(requests)))
        await asyncio.wait_for(together, TIMEOUT)
    finally:
        await client.close()
    return answers, errors


def main():
    protocol, ports, model, source, requests, concurrency, target = sys.argv[1:]
    ports = dict(zip(("http", "grpc"), ports.split(","), strict=True))
    with np.load(source) as arrays:
        inputs = dict(arrays)
    before = counts(ports["http"], model)
    how = (protocol, ports[protocol], model, inputs, int(requests), int(concurrency))
    answers, errors = asyncio.run(send(*how))
    after = counts(ports["http"], model)
    if not errors:
        np.savez(target, logits=np.stack(answers))
    sys.stdout.write(
        json.dumps({"errors": errors, **{key: after[key] - before[key] for key in after}})
    )


main()
