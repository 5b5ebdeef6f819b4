"""What the service offers as an OpenAPI 3.1 document, and the page that shows it."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

from resnext_core import __version__
from resnext_serve.protocol import INPUT, OUTPUTS
from resnext_serve.settings import ServeSettings

_ERROR = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}
_PREDICTION = {
    "type": "object",
    "required": ["path"],
    "properties": {
        "path": {"type": "string", "description": "the name that the client gave the file"},
        "error": {"type": "string", "description": "why the file cannot be read; there is no top then"},
        "top": {
            "type": "array",
            "description": "most probable class first",
            "items": {
                "type": "object",
                "required": ["id", "name", "probability"],
                "properties": {
                    "id": {"type": "integer"},
                    "name": {"type": "string"},
                    "probability": {"type": "number", "minimum": 0, "maximum": 1},
                },
            },
        },
    },
}
_PARAMETERS = {"type": "object", "additionalProperties": True}
_INFER = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "id": {"type": "string"},
        "parameters": _PARAMETERS,
        "inputs": {
            "type": "array",
            "minItems": 1,
            "maxItems": 1,
            "items": {
                "type": "object",
                "required": ["name", "shape", "datatype"],
                "properties": {
                    "name": {"const": INPUT},
                    "shape": {"type": "array", "items": {"type": "integer", "minimum": 1}},
                    "datatype": {"enum": ["UINT8", "BYTES"]},
                    "parameters": _PARAMETERS,
                    "data": {
                        "type": "array",
                        "description": "UINT8: integers 0 to 255; BYTES: image files in base64",
                    },
                },
            },
        },
        "outputs": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name"],
                "properties": {"name": {"enum": list(OUTPUTS)}, "parameters": _PARAMETERS},
            },
        },
    },
}
_MEANINGS = {
    400: "the request is not as described here",
    401: "the bearer token is missing or wrong",
    404: "there is no such model or version",
    408: "the request did not arrive in time",
    413: "the body, or the number of files, is above the limit",
    415: "the body is compressed",
    422: "an image cannot be read; the error says why",
    500: "the model failed on this request",
    503: "not ready, or too busy; Retry-After says when to try again",
    504: "not answered in time",
}


def document(settings: ServeSettings) -> dict[str, Any]:
    """Return the OpenAPI document of a service."""
    model = {"name": "model", "in": "path", "required": True, "schema": {"enum": list(settings.models)}}
    version = {"name": "version", "in": "path", "required": True, "schema": {"const": "1"}}
    paths: dict[str, Any] = {
        "/v2": {"get": _get("name, version and extensions of the service")},
        "/v2/health/live": {"get": _get("whether the process answers", open_to_all=True)},
        "/v2/health/ready": {
            "get": _get("whether every model is loaded and its golden logits agree", 503, open_to_all=True)
        },
        "/metrics": {"get": _get("figures in Prometheus' form", kind="text/plain")},
    }
    for prefix, parameters in (("", [model]), ("/versions/{version}", [model, version])):
        path = f"/v2/models/{{model}}{prefix}"
        paths[path] = {
            "get": _get("digest, preprocessing, classes and golden logits", 404, 503),
            "parameters": parameters,
        }
        paths[f"{path}/ready"] = {
            "get": _get("whether this model answers", 404, 503),
            "parameters": parameters,
        }
        paths[f"{path}/infer"] = {"post": _infer(), "parameters": parameters}
    wanted = {"name": "model", "in": "query", "schema": {"enum": list(settings.models)}}
    top = {
        "name": "top",
        "in": "query",
        "schema": {"type": "integer", "minimum": 1, "maximum": 10_000, "default": 5},
    }
    lines = {
        "application/json": {"schema": _PREDICTION},
        "application/x-ndjson": {
            "schema": {"type": "string", "description": "one prediction a line, for a form"}
        },
    }
    paths["/predict"] = {
        "post": {**_with_images("the classes that images show"), "parameters": [top, wanted],
                 "responses": _responses(lines, 400, 404, 408, 413, 415, 422, 500, 503, 504)},
    }  # fmt: skip
    paths["/preview"] = {
        "post": {**_with_images("the pixels that the network sees, as PNG"), "parameters": [wanted],
                 "responses": _responses({"image/png": {}}, 400, 404, 408, 413, 415, 422, 503, 504)},
    }  # fmt: skip
    found: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "resnext", "version": __version__,
            "description": "Image classification by the Open Inference Protocol v2, or with image files as they are.",
        },
        "paths": paths,
    }  # fmt: skip
    if settings.token is not None:
        found["components"] = {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}}
        found["security"] = [{"token": []}]
    return found


def page(described: Mapping[str, Any]) -> str:
    """Return an HTML page of the document; it loads nothing but the service's own style."""
    rows = []
    for path, item in described["paths"].items():
        for method, operation in item.items():
            if method in ("get", "post"):
                codes = "".join(
                    f"<li><code>{code}</code> {html.escape(answer['description'])}</li>"
                    for code, answer in operation["responses"].items()
                )
                rows.append(
                    f"<section><h2><code>{method.upper()} {html.escape(path)}</code></h2>"
                    f"<p>{html.escape(operation['summary'])}</p><ul>{codes}</ul></section>"
                )
    example = html.escape(
        "curl -F image=@photo.jpg http://HOST:PORT/predict\n"
        "curl --data-binary @photo.jpg http://HOST:PORT/predict?top=3"
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>resnext: interface</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="stylesheet" href="/page.css"></head><body><main><h1>Interface</h1>'
        f'<p>{html.escape(described["info"]["description"])} The same as <a href="/openapi.json">OpenAPI</a>.</p>'
        f"<pre>{example}</pre>{''.join(rows)}</main></body></html>\n"
    )


def _get(
    summary: str, *codes: int, kind: str = "application/json", open_to_all: bool = False
) -> dict[str, Any]:
    content = {kind: {"schema": {"type": "object"} if kind == "application/json" else {"type": "string"}}}
    found = {"summary": summary, "responses": _responses(content, *codes)}
    return {**found, "security": []} if open_to_all else found


def _infer() -> dict[str, Any]:
    content = {"application/json": {"schema": {"type": "object"}}, "application/octet-stream": {}}
    return {
        "summary": "logits and probabilities of images",
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": _INFER}, "application/octet-stream": {}},
        },
        "responses": _responses(content, 400, 404, 408, 413, 415, 422, 500, 503, 504),
    }


def _with_images(summary: str) -> dict[str, Any]:
    files = {
        "type": "object",
        "properties": {"image": {"type": "array", "items": {"type": "string", "format": "binary"}}},
    }
    return {
        "summary": summary,
        "requestBody": {
            "required": True,
            "content": {
                "application/octet-stream": {},
                "image/*": {},
                "multipart/form-data": {"schema": files},
            },
        },
    }


def _responses(content: Mapping[str, Any], *codes: int) -> dict[str, Any]:
    found: dict[str, Any] = {"200": {"description": "the answer", "content": dict(content)}}
    for code in sorted({401, *codes}):
        found[str(code)] = {
            "description": _MEANINGS[code],
            "content": {"application/json": {"schema": _ERROR}},
        }
    return found
