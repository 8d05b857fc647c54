"""Serve an instance model: POST a photograph, get its objects and masks (COCO's RLE) as JSON.

POINT_REND_MODEL=model.onnx uvicorn --factory examples.serve_onnx:build_app --limit-concurrency 16
curl --data-binary @photo.jpg http://127.0.0.1:8000/instances
"""

import io
import os
import threading

import onnxruntime
from fastapi import FastAPI, HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from PIL import Image

from examples.run_onnx import segment

MAX_BYTES, MAX_PIXELS = 20_000_000, 40_000_000


def read(body: bytes) -> Image.Image:
    """Decode a photograph."""
    try:
        picture = Image.open(io.BytesIO(body), formats=("JPEG", "PNG", "WEBP"))
        if picture.width * picture.height <= MAX_PIXELS:
            picture.load()
            return picture
    except Exception as error:
        if not isinstance(error, Image.DecompressionBombError):
            message = "the body is no complete JPEG, PNG or WebP picture"
            raise HTTPException(400, message) from error
    raise HTTPException(413, f"the picture has more than {MAX_PIXELS} pixels")


def build_app() -> FastAPI:
    """Build the server, which segments one photograph at a time, on all cores."""
    app, one_at_a_time = FastAPI(title="PointRend"), threading.Lock()
    path = os.environ["POINT_REND_MODEL"]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    segment(session, Image.new("RGB", (64, 64)))  # ends here for a model of other images

    def answer(body: bytes) -> list[dict]:
        with one_at_a_time:
            return segment(session, read(body))

    @app.get("/health")
    def health() -> dict:
        return {"status": "ok"}

    @app.post("/instances")
    async def instances(request: Request) -> list[dict]:
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > MAX_BYTES:
                raise HTTPException(413, f"the body has more than {MAX_BYTES} bytes")
        return await run_in_threadpool(answer, bytes(body))

    return app
