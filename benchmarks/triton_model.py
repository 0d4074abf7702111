"""The codecs of `service_overhead.py` as Python models in Triton, and a client for them.

Run by a Python that has nvidia-pytriton, with this project on its path.

    python triton_model.py serve PORT                  # prints "ready", serves until its input ends
    python triton_model.py call PORT MODEL FILE        # per line N of its input: N calls; prints wall and CPU seconds
"""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

import numpy as np


def serve(port: int) -> None:
    """Binds `store` and `klt`, (L, C) to bytes."""
    from pytriton.model_config import ModelConfig, Tensor
    from pytriton.triton import Triton, TritonConfig
    from store_codec import StoreCodec

    from mpcompress import registry
    from mpcompress.codec import CodingParams, FeatureCodec, TensorSpec

    def model(codec: FeatureCodec) -> Any:
        def infer(requests: list[Any]) -> list[dict[str, Any]]:
            answers = []
            for request in requests:
                h = request["h"]
                spec = TensorSpec(name="h", dtype=h.dtype.name, shape=h.shape)
                (coded,) = codec.compress([{"h": h}], codec.resolve([spec], CodingParams()))
                answers.append({"unit": np.frombuffer(b"".join(coded.strings), np.uint8)})
            return answers

        return infer

    klt = registry.load(registry.preset("klt-imgfocus-vits14-final"))
    klt.warm_up()
    config = TritonConfig(grpc_port=port, http_port=port + 1, metrics_port=port + 2, log_verbose=0)
    with Triton(config=config) as triton:
        for name, codec, dtype in (("store", StoreCodec("store"), np.float32), ("klt", klt, np.float16)):
            triton.bind(
                model_name=name,
                infer_func=model(codec),
                inputs=[Tensor(name="h", dtype=dtype, shape=(-1, -1))],
                outputs=[Tensor(name="unit", dtype=np.uint8, shape=(-1,))],
                config=ModelConfig(batching=False),
            )
        triton.run()
        print("ready", flush=True)
        sys.stdin.read()


def call(port: int, model: str, file: str) -> None:
    """Calls a model with the array of a file."""
    from tritonclient import grpc as triton

    client = triton.InferenceServerClient(f"127.0.0.1:{port}")
    h = np.load(file)
    for line in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(int(line)):
            tensor = triton.InferInput("h", list(h.shape), "FP16" if h.dtype == np.float16 else "FP32")
            tensor.set_data_from_numpy(h)
            unit = client.infer(model, [tensor]).as_numpy("unit")
            if unit is None or not unit.size:
                raise SystemExit("no unit came back")
        print(time.perf_counter() - wall, time.process_time() - cpu, flush=True)


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    if sys.argv[1] == "serve":
        serve(int(sys.argv[2]))
    else:
        call(int(sys.argv[2]), sys.argv[3], sys.argv[4])
