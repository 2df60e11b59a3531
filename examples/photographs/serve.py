"""Serve small.onnx over HTTP, without archgrad and without torch: python serve.py FOLDER [PHOTOGRAPH to time].

curl --data-binary @photograph.jpg http://localhost:8000
"""

import io
import json
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import onnxruntime
from PIL import Image

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(f"{sys.argv[1]}/small.onnx", options)
with open(f"{sys.argv[1]}/labels.json") as file:  # noqa: PTH123
    labels = json.load(file)
(slot,) = session.get_inputs()


def answer(photograph: bytes) -> dict[str, float]:
    image = Image.open(io.BytesIO(photograph)).convert("RGB").resize(slot.shape[:1:-1], Image.Resampling.BILINEAR)
    (logits,) = session.run(None, {slot.name: np.asarray(image, np.float32).transpose(2, 0, 1)[None]})[0]
    odds = np.exp(logits - logits.max())
    return dict(zip(labels, (odds / odds.sum()).round(4).tolist(), strict=True))


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(answer(self.rfile.read(int(self.headers["Content-Length"])))).encode())


if len(sys.argv) > 2:
    with open(sys.argv[2], "rb") as file:  # noqa: PTH123
        photograph = file.read()
    took = []
    for _ in range(300):
        began = time.perf_counter()
        answer(photograph)
        took.append(1000 * (time.perf_counter() - began))
    print(answer(photograph), f"median {np.median(took):.2f} ms from the file's bytes to the answer")
else:
    HTTPServer(("localhost", 8000), Handler).serve_forever()
