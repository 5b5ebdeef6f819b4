"""The routes of the service; what they answer is in :mod:`resnext_serve.openapi` too."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from resnext_core import __version__
from resnext_core.data.decode import BadImage
from resnext_core.errors import shown
from resnext_core.jobs.infer import Prediction, predicted
from resnext_core.serving.metrics import softmax
from resnext_serve.bodies import files_of, read_body
from resnext_serve.errors import Refused
from resnext_serve.guard import Guard
from resnext_serve.images import Decoder, png
from resnext_serve.metrics import CONTENT_TYPE, Metrics
from resnext_serve.openapi import document, page
from resnext_serve.protocol import EXTENSIONS, INPUT, JSON_LENGTH, OUTPUTS, VERSION, parse_infer, write_infer
from resnext_serve.served import Generation, ServedModel
from resnext_serve.settings import ServeSettings

_TOP = 5


class Service:
    """The models of a service and what they share; :meth:`app` is its ASGI application."""

    def __init__(self, settings: ServeSettings) -> None:
        self.settings, self.limits = settings, settings.limits
        self.metrics = Metrics()
        self.decoder = Decoder(self.limits.decoders, self.limits.decoded_pixels)
        self.draining = False
        self.models: dict[str, ServedModel] = {}
        self._watching: list[asyncio.Task[None]] = []

    def app(self) -> ASGIApp:
        """Return the application; its models come by :meth:`start`, in the event loop."""
        routes = [
            self._route("/", self._file("index.html", "text/html; charset=utf-8")),
            self._route("/page.css", self._file("page.css", "text/css; charset=utf-8")),
            self._route("/page.js", self._file("page.js", "text/javascript; charset=utf-8")),
            self._route("/docs", self._docs),
            self._route("/openapi.json", self._openapi),
            self._route("/metrics", self._figures),
            self._route("/predict", self._predict, "POST"),
            self._route("/preview", self._preview, "POST"),
            self._route("/v2", self._server),
            self._route("/v2/health/live", self._live),
            self._route("/v2/health/ready", self._ready),
        ]
        for prefix in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
            routes += [
                self._route(prefix, self._metadata),
                self._route(f"{prefix}/ready", self._model_ready),
                self._route(f"{prefix}/infer", self._infer, "POST"),
            ]
        starlette = Starlette(routes=routes, exception_handlers={HTTPException: _unknown, Refused: _refused})
        return Guard(starlette, metrics=self.metrics, token=self.settings.token, timeout=self.limits.timeout)

    async def start(self) -> None:
        """Load and prove the models, one after the other, and watch them from then on; raises ResnextError."""
        given = self.settings
        for name, path in given.models.items():
            self.models[name] = ServedModel(
                name, path, given.config, backend=given.backend, limits=self.limits, metrics=self.metrics
            )
        for model in self.models.values():
            await model.start()
            self._watching.append(asyncio.create_task(model.watch()))

    async def close(self) -> None:
        """Release the models; no request may be open."""
        for task in self._watching:
            task.cancel()
        await asyncio.gather(*self._watching, return_exceptions=True)
        for model in self.models.values():
            await model.close()
        self.decoder.close()

    # -- about the service -----------------------------------------------------------------------

    def _route(
        self, path: str, answer: Callable[[Request], Awaitable[Response]], method: str = "GET"
    ) -> Route:
        async def endpoint(request: Request) -> Response:
            request.scope["resnext.route"] = path
            return await answer(request)

        return Route(path, endpoint, methods=[method])

    def _file(self, name: str, kind: str) -> Callable[[Request], Awaitable[Response]]:
        content = resources.files("resnext_serve").joinpath("page", name).read_bytes()

        async def answer(request: Request) -> Response:
            return Response(content, media_type=kind)

        return answer

    async def _docs(self, request: Request) -> Response:
        return Response(page(document(self.settings)), media_type="text/html; charset=utf-8")

    async def _openapi(self, request: Request) -> Response:
        return JSONResponse(document(self.settings))

    async def _figures(self, request: Request) -> Response:
        return Response(self.metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    async def _server(self, request: Request) -> Response:
        return JSONResponse(
            {
                "name": "resnext",
                "version": __version__,
                "extensions": list(EXTENSIONS),
                "models": list(self.models),
            }
        )

    async def _live(self, request: Request) -> Response:
        return JSONResponse({"live": True})

    async def _ready(self, request: Request) -> Response:
        reasons = {model.name: model.reason for model in self.models.values() if model.reason is not None}
        if self.draining:
            return JSONResponse({"ready": False, "reasons": {"": "the service is ending"}}, 503)
        ready = bool(self.models) and not reasons
        return JSONResponse(
            {"ready": ready, **({"reasons": reasons} if reasons else {})}, 200 if ready else 503
        )

    # -- about a model ---------------------------------------------------------------------------

    def _model(self, name: str | None, version: str | None = None) -> ServedModel:
        if name is None:
            name = next(iter(self.models), "")
        if name not in self.models:
            known = ", ".join(self.models)
            raise Refused(404, f"unknown model {shown(name)}; there is {known}")
        if version not in (None, VERSION):
            raise Refused(404, f"unknown version {shown(str(version))} of {name}; there is {VERSION}")
        return self.models[name]

    def _named(self, request: Request) -> ServedModel:
        return self._model(request.path_params["model"], request.path_params.get("version"))

    async def _model_ready(self, request: Request) -> Response:
        model = self._named(request)
        ready = model.is_ready and not self.draining
        return JSONResponse({"name": model.name, "ready": ready}, 200 if ready else 503)

    async def _metadata(self, request: Request) -> Response:
        model = self._named(request)
        async with model.used() as generation:
            return JSONResponse(_describe(model, generation))

    async def _infer(self, request: Request) -> Response:
        body = await read_body(request, self.limits.body_bytes)
        model = self._named(request)
        async with model.used() as generation:
            loaded = generation.proven.model
            wanted = parse_infer(
                body,
                request.headers.get(JSON_LENGTH),
                size=loaded.spec.image_size,
                most_images=self.limits.images,
            )
            if wanted.pixels is not None:
                logits = await self._logits(model, generation, wanted.pixels)
            else:
                with generation.batcher.arriving():
                    read = await self._decode(model, generation, wanted.files)
                for position, found in enumerate(read):
                    if isinstance(found, BadImage):
                        raise Refused(422, f"image {position}: {found.reason}")
                logits = await self._logits(model, generation, _stacked(read))
            tensors = {"logits": logits, "probabilities": softmax(logits).astype(np.float32)}
            content, headers = write_infer(wanted, model.name, tensors, loaded.classes)
            return Response(content, headers=headers)

    # -- images as they are ----------------------------------------------------------------------

    async def _predict(self, request: Request) -> Response:
        top = _number(request, "top", _TOP)
        body = await read_body(request, self.limits.body_bytes)
        files, is_form = await files_of(request, body, self.limits.images)
        model = self._model(request.query_params.get("model"))
        async with model.used() as generation:
            classes = generation.proven.model.classes
            with generation.batcher.arriving():
                read = await self._decode(model, generation, [file.content for file in files])
            good = [found for found in read if not isinstance(found, BadImage)]
            rows = iter(await self._logits(model, generation, np.stack(good)) if good else ())
            lines = []
            for file, found in zip(files, read, strict=True):
                if isinstance(found, BadImage):
                    lines.append(Prediction(path=file.name, error=found.reason))
                else:
                    lines.append(predicted(file.name, next(rows), classes, top))
        if not is_form:
            failed = lines[0].error is not None
            return (
                JSONResponse({"error": lines[0].error}, 422) if failed else JSONResponse(lines[0].to_dict())
            )
        text = "".join(json.dumps(line.to_dict()) + "\n" for line in lines)
        return Response(text, media_type="application/x-ndjson")

    async def _preview(self, request: Request) -> Response:
        body = await read_body(request, self.limits.body_bytes)
        files, _ = await files_of(request, body, 1)
        model = self._model(request.query_params.get("model"))
        async with model.used() as generation:
            (found,) = await self._decode(model, generation, [files[0].content])
        if isinstance(found, BadImage):
            raise Refused(422, found.reason)
        return Response(png(found), media_type="image/png")

    async def _decode(
        self, model: ServedModel, generation: Generation, files: list[bytes] | Any
    ) -> list[NDArray[np.uint8] | BadImage]:
        read, seconds = await self.decoder.pixels(files, generation.proven.model.preprocess)
        self.metrics.stages(model.name, preprocess=seconds)
        self.metrics.images(model.name, unreadable=sum(isinstance(found, BadImage) for found in read))
        return read

    async def _logits(
        self, model: ServedModel, generation: Generation, images: NDArray[np.uint8]
    ) -> NDArray[np.float32]:
        answer = await model.logits(generation, images)
        self.metrics.stages(model.name, queue=answer.queue_seconds, compute=answer.compute_seconds)
        self.metrics.images(model.name, answered=len(images))
        return answer.logits


def _stacked(read: list[NDArray[np.uint8] | BadImage]) -> NDArray[np.uint8]:
    return np.stack([found for found in read if not isinstance(found, BadImage)])


def _describe(model: ServedModel, generation: Generation) -> dict[str, Any]:
    """Return the metadata of a model, with what makes it this model and how it was proven."""
    proven, loaded = generation.proven, generation.proven.model
    size, classes = loaded.spec.image_size, len(loaded.classes)
    return {
        "name": model.name,
        "versions": [VERSION],
        "platform": f"resnext_{loaded.backend.id}",
        "inputs": [{"name": INPUT, "datatype": "UINT8", "shape": [-1, size, size, 3]}],
        "outputs": [{"name": name, "datatype": "FP32", "shape": [-1, classes]} for name in OUTPUTS],
        "parameters": {
            "variant": loaded.spec.variant,
            "digest": loaded.digest,
            "backend": loaded.backend.id,
            "precision": loaded.precision or "float32",
            "notes": list(loaded.notes),
            "preprocess": loaded.preprocess.to_dict(),
            "classes": list(loaded.classes),
            "golden": {
                "from": proven.by,
                "difference": model.difference,
                "compute": proven.golden.compute,
                "logits": [list(row) for row in proven.golden.logits],
            },
            "also_takes": {"name": INPUT, "datatype": "BYTES", "shape": [-1], "content": "image files"},
        },
    }


def _number(request: Request, name: str, default: int) -> int:
    text = request.query_params.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdecimal() and 1 <= int(text[:10]) <= 10_000):
        raise Refused(400, f"{name} must be a number from 1 to 10000")
    return int(text)


async def _refused(request: Request, error: Exception) -> Response:
    """Answer what was refused."""
    assert isinstance(error, Refused)
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    return JSONResponse({"error": error.message}, error.status, headers=headers)


async def _unknown(request: Request, error: Exception) -> Response:
    """Answer an unknown path, or a method that a path has not."""
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": str(error.detail)}, error.status_code, headers=dict(error.headers or {}))
