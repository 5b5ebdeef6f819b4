"""The service from the outside: the protocol with a stranger's client, images as they are, limits, the token."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from resnext_serve.protocol import JSON_LENGTH
from serve_cases import CLASSES, SIZE, Running, photo, pixels, predictor, running, weights

from resnext_core.data.render import load_eval_bytes
from resnext_core.serving.metrics import softmax


def expected(images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.asarray(predictor(weights()).logits(images))


def infer_body(**changes: Any) -> dict[str, Any]:
    given = {
        "name": "images",
        "shape": [1, SIZE, SIZE, 3],
        "datatype": "UINT8",
        "data": pixels(1).ravel().tolist(),
    }
    return {"inputs": [{**given, **changes}]}


# -- the Open Inference Protocol, as a stranger's client speaks it --------------------------------


@pytest.fixture
def triton(service: Running) -> Any:
    client = pytest.importorskip("tritonclient.http", reason="tritonclient[http] is not installed")
    found = client.InferenceServerClient(service.url.removeprefix("http://"))
    yield client, found
    found.close()


def test_triton_client_sees_a_ready_server_and_its_model(triton: Any) -> None:
    _, client = triton
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("resnext")
    assert client.is_model_ready("resnext", "1")
    assert not client.is_model_ready("unknown")
    assert client.get_server_metadata()["extensions"] == ["classification", "binary_tensor_data"]
    found = client.get_model_metadata("other")
    assert found["name"] == "other"
    assert found["inputs"] == [{"name": "images", "datatype": "UINT8", "shape": [-1, SIZE, SIZE, 3]}]
    assert found["parameters"]["digest"] == weights().digest
    assert found["parameters"]["golden"]["from"] == "file"
    assert found["parameters"]["golden"]["difference"] <= 1e-5


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_triton_client_gets_the_logits(triton: Any, binary_in: bool, binary_out: bool) -> None:
    library, client = triton
    images = pixels(3)
    given = library.InferInput("images", images.shape, "UINT8")
    given.set_data_from_numpy(images, binary_data=binary_in)
    outputs = [
        library.InferRequestedOutput("logits", binary_data=binary_out),
        library.InferRequestedOutput("probabilities", binary_data=binary_out),
    ]
    found = client.infer("resnext", [given], outputs=outputs, request_id="7")
    wanted = expected(images)
    assert found.get_response()["id"] == "7"
    np.testing.assert_allclose(found.as_numpy("logits"), wanted, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.as_numpy("probabilities"), softmax(wanted), atol=1e-6)


@pytest.mark.parametrize("binary", [True, False])
def test_triton_client_gets_classes(triton: Any, binary: bool) -> None:
    library, client = triton
    images = pixels(2)
    given = library.InferInput("images", images.shape, "UINT8")
    given.set_data_from_numpy(images)
    output = library.InferRequestedOutput("probabilities", class_count=2, binary_data=binary)
    found = client.infer("resnext", [given], outputs=[output]).as_numpy("probabilities")
    assert found.shape == (2, 2)
    for row, logits in zip(found, expected(images), strict=True):
        best = np.argsort(-logits)[:2].tolist()
        for text, index in zip(row, best, strict=True):
            value, number, name = (text.decode() if binary else text).split(":", 2)
            assert (int(number), name) == (index, f"class {index}")
            assert float(value) == pytest.approx(float(softmax(logits)[index]), abs=1e-6)


def test_triton_client_sends_image_files(triton: Any) -> None:
    library, client = triton
    files = [photo(1), photo(2, kind="PNG")]
    given = library.InferInput("images", [2], "BYTES")
    given.set_data_from_numpy(np.array(files, dtype=object))
    found = client.infer("resnext", [given]).as_numpy("logits")
    read = np.stack([load_eval_bytes(file, weights().preprocess) for file in files])
    np.testing.assert_allclose(found, expected(read), rtol=1e-5, atol=1e-5)


def test_image_files_in_json_are_base64(service: Running) -> None:
    data = [base64.b64encode(photo(1)).decode()]
    body = infer_body(datatype="BYTES", shape=[1], data=data)
    found = service.post("/v2/models/resnext/infer", json=body).json()
    read = load_eval_bytes(photo(1), weights().preprocess)[None]
    np.testing.assert_allclose(found["outputs"][0]["data"], expected(read)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"name": "input"}, "unknown input input; the input is 'images'"),
        ({"datatype": "FP32"}, "must be UINT8 or BYTES, not FP32"),
        ({"shape": [1, 3, SIZE, SIZE]}, f"must be [N, {SIZE}, {SIZE}, 3] as UINT8"),
        ({"shape": [0, SIZE, SIZE, 3]}, "a list of positive integers"),
        ({"shape": [10**6, SIZE, SIZE, 3]}, "a request has 1 to 64 images"),
        ({"shape": []}, "a request has 1 to 64 images"),
        ({"shape": "1"}, "shape must be a list"),
        ({"data": [1, 2]}, f"data must be {SIZE * SIZE * 3} integers"),
        ({"data": [0.5] * (SIZE * SIZE * 3)}, "integers"),
        ({"data": [256] * (SIZE * SIZE * 3)}, "data must be from 0 to 255"),
        ({"data": [-1] * (SIZE * SIZE * 3)}, "data must be from 0 to 255"),
        ({"data": [10**40] * (SIZE * SIZE * 3)}, "integers"),
        ({"data": None}, "integers"),
        ({"data": [[1], [1, 2]]}, "flat or nested"),
        ({"parameters": {"binary_data_size": 5}}, "binary_data_size is 5, but 0 bytes follow"),
        ({"parameters": []}, "parameters must be an object"),
        ({"datatype": "BYTES", "shape": [1], "data": ["?"]}, "data is not base64"),
        ({"datatype": "BYTES", "shape": [2], "data": ["AA=="]}, "data must be a list of 2 strings"),
        ({"datatype": "BYTES", "shape": [1, 2], "data": ["AA=="]}, "must be [N] as BYTES"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, str) else "",
)
def test_a_wrong_input_is_refused_with_the_reason(
    service: Running, changes: dict[str, Any], says: str
) -> None:
    answer = service.post("/v2/models/resnext/infer", json=infer_body(**changes))
    assert answer.status_code == 400
    assert says in answer.json()["error"]


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"", 400, "the request is not JSON"),
        (b"[1]", 400, "must be a JSON object"),
        (b"{", 400, "the request is not JSON"),
        (b"[" * 100_000, 400, "the request is not JSON"),
        (b"{}", 400, "inputs must be a list"),
        (b'{"inputs": [1]}', 400, "a list of one object"),
        (b"\xff\xfe", 400, "the request is not JSON"),
    ],
)
def test_a_malformed_request_is_refused(service: Running, body: bytes, status: int, says: str) -> None:
    answer = service.post("/v2/models/resnext/infer", body)
    assert answer.status_code == status
    assert says in answer.json()["error"]


@pytest.mark.parametrize("length", ["5", "-1", "x", "99999999999999999999999", "²"])
def test_a_wrong_length_of_the_json_is_refused(service: Running, length: str) -> None:
    headers = {JSON_LENGTH.encode(): length.encode()}
    answer = service.post("/v2/models/resnext/infer", b'{"inputs": []}', headers=headers)
    assert answer.status_code == 400


@pytest.mark.parametrize(
    ("outputs", "says"),
    [
        ([{"name": "scores"}], "unknown output scores; there are logits, probabilities"),
        ([], "one output or more"),
        ([{"name": "logits"}, {"name": "logits"}], "each once"),
        ([{"name": "logits", "parameters": {"classification": -1}}], "a number of classes"),
        ([{"name": "logits", "parameters": {"binary_data": 1}}], "binary_data must be true or false"),
        ([3], "unknown output 3"),
    ],
)
def test_a_wrong_output_is_refused(service: Running, outputs: Any, says: str) -> None:
    answer = service.post("/v2/models/resnext/infer", json={**infer_body(), "outputs": outputs})
    assert answer.status_code == 400
    assert says in answer.json()["error"]


def test_unknown_models_versions_and_paths(service: Running) -> None:
    for path in ("/v2/models/none", "/v2/models/none/ready", "/v2/models/resnext/versions/2", "/none"):
        assert service.get(path).status_code == 404, path
    assert service.get("/v2/models/none").json()["error"] == "unknown model none; there is resnext, other"
    assert service.post("/v2/models/none/infer", json=infer_body()).status_code == 404
    assert service.get("/predict").status_code == 405
    assert service.post("/predict?model=none", photo()).status_code == 404


# -- images as they are ---------------------------------------------------------------------------


def test_one_image_gives_the_line_of_infer(service: Running) -> None:
    found = service.post("/predict?top=2", photo(3)).json()
    logits = expected(load_eval_bytes(photo(3), weights().preprocess)[None])[0]
    best = np.argsort(-logits)[:2].tolist()
    assert [guess["id"] for guess in found["top"]] == best
    assert [guess["name"] for guess in found["top"]] == [f"class {i}" for i in best]
    assert found["top"][0]["probability"] == pytest.approx(float(softmax(logits)[best[0]]), abs=2e-6)


def test_a_form_with_several_images_gives_a_line_for_each(service: Running) -> None:
    files = [
        ("image", ("a.jpg", photo(1))),
        ("image", ("../b.txt", b"text")),
        ("image", ("c.png", photo(2, kind="PNG"))),
    ]
    answer = service.post("/predict?model=other", files=files)
    assert answer.headers["content-type"].startswith("application/x-ndjson")
    first, second, third = map(json.loads, answer.text.splitlines())
    assert (first["path"], second["path"], third["path"]) == ("a.jpg", "../b.txt", "c.png")
    assert second["error"].startswith("not an image of a known format")
    assert len(first["top"]) == len(third["top"]) == CLASSES


def test_the_preview_is_what_the_network_sees(service: Running, tmp_path: Path) -> None:
    answer = service.post("/preview", photo(4))
    (tmp_path / "seen.png").write_bytes(answer.content)
    np.testing.assert_array_equal(
        np.asarray(Image.open(tmp_path / "seen.png")), load_eval_bytes(photo(4), weights().preprocess)
    )


@pytest.mark.parametrize(
    ("content", "status", "says"),
    [
        (b"", 400, "the body is empty"),
        (b"text", 422, "not an image of a known format"),
        (photo()[:300], 422, "a broken JPEG"),
        (b"version https://git-lfs.github.com/spec/v1", 422, "Git LFS pointer"),
    ],
)
def test_what_is_no_image_is_refused(service: Running, content: bytes, status: int, says: str) -> None:
    for path in ("/predict", "/preview"):
        answer = service.post(path, content)
        assert answer.status_code == status
        assert says in answer.json()["error"]


def test_a_form_that_is_none_is_refused(service: Running) -> None:
    for kind, content in (
        ("multipart/form-data", b"x"),
        ("multipart/form-data; boundary=b", b"no boundary in here"),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="text"\r\n\r\nx\r\n--b--\r\n',
        ),
    ):
        answer = service.post("/predict", content, headers={"Content-Type": kind})
        assert answer.status_code == 400, content
        assert "the form" in answer.json()["error"]


@pytest.mark.parametrize("top", ["0", "-1", "x", "1e9", "99999999999"])
def test_a_wrong_number_of_classes_is_refused(service: Running, top: str) -> None:
    assert service.post(f"/predict?top={top}", photo()).status_code == 400


# -- limits ---------------------------------------------------------------------------------------


def test_limits_have_their_answers(model: Path) -> None:
    with running({"resnext": model}, body_mb=0.1, pixels=10_000, images=2, decoders=1) as service:
        large = service.post("/predict", b"x" * 200_000)
        assert (large.status_code, large.json()["error"]) == (413, "the body has more than 100000 bytes")
        chunked = service.post("/predict", iter([b"x" * 60_000] * 3))
        assert chunked.status_code == 413
        bomb = service.post("/predict", photo(size=(400, 400), kind="PNG"))
        assert (bomb.status_code, bomb.json()["error"]) == (422, "400 x 400 is more than 10000 pixels")
        three = [("image", ("a.jpg", photo(size=(16, 16)))) for _ in range(3)]
        assert service.post("/predict", files=three).status_code == 413
        body = infer_body(shape=[3, SIZE, SIZE, 3], data=[0])
        assert "1 to 2 images" in service.post("/v2/models/resnext/infer", json=body).json()["error"]
        packed = service.post("/predict", photo(), headers={"Content-Encoding": "gzip"})
        assert packed.status_code == 415
        assert service.post("/predict", photo()).status_code == 200


def test_nothing_of_a_request_is_kept(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even for a moment: a form is parsed in memory, where others spool large files to a temporary folder."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "there is no such folder"))
    with running({"resnext": model}) as service:
        large = photo(size=(1600, 1600), kind="BMP")
        assert len(large) > 2_000_000
        assert service.post("/predict", files=[("image", ("a.bmp", large))]).status_code == 200


# -- the token ------------------------------------------------------------------------------------


def test_a_token_guards_all_but_health_and_the_page(model: Path) -> None:
    with running({"resnext": model}, token="secret word".replace(" ", "-")) as service:
        for path in ("/v2", "/v2/models/resnext", "/metrics", "/docs", "/openapi.json", "/none"):
            assert service.get(path).status_code == 401, path
        for path in ("/", "/page.js", "/page.css", "/v2/health/live", "/v2/health/ready"):
            assert service.get(path).status_code == 200, path
        refused = service.post("/predict", photo())
        assert refused.status_code == 401
        assert refused.headers["www-authenticate"] == "Bearer"
        for wrong in (
            "Bearer secret-wor",
            "Bearer secret-words",
            "Basic secret-word",
            "secret-word",
            "Bearer \xe9",
        ):
            headers = {b"Authorization": wrong.encode("latin-1")}
            assert service.post("/predict", photo(), headers=headers).status_code == 401, wrong
        assert (
            service.post("/predict", photo(), headers={"Authorization": "bearer secret-word"}).status_code
            == 200
        )


# -- figures and documents ------------------------------------------------------------------------


def test_figures_count_requests_images_and_batches(model: Path) -> None:
    with running({"resnext": model}) as service:
        service.post("/predict", photo())
        service.post("/predict", files=[("image", ("a", photo())), ("image", ("b", b"text"))])
        service.post("/predict", b"text")
        assert service.figure("resnext_model_ready") == 1
        assert service.figure("resnext_batch_images_count") == 2
        assert service.figure("resnext_batch_images_sum") == 2
        assert service.figure("resnext_images_total") == 4
        assert service.figure("resnext_queue_images") == 0
        text = service.get("/metrics").text
        assert 'resnext_requests_total{code="200",method="POST",route="/predict"} 2.0' in text
        assert 'resnext_requests_total{code="422",method="POST",route="/predict"} 1.0' in text
        assert 'resnext_images_total{model="resnext",outcome="unreadable"} 2.0' in text
        for stage in ("preprocess", "queue", "compute"):
            assert f'resnext_stage_seconds_count{{model="resnext",stage="{stage}"}}' in text


def test_every_route_is_in_the_document_and_answers_as_it_says(service: Running) -> None:
    described = service.get("/openapi.json").json()
    assert service.service is not None
    guard: Any = service.service.app()
    routes = {route.path for route in guard._app.routes}
    page = {"/", "/page.css", "/page.js", "/docs", "/openapi.json"}
    assert set(described["paths"]) == routes - page
    shown = service.get("/docs").text
    for path, item in described["paths"].items():
        assert path in shown
        for method in item.keys() & {"get", "post"}:
            url = path.replace("{model}", "resnext").replace("{version}", "1")
            answer = service.client.request(method, service.url + url)
            assert str(answer.status_code) in item[method]["responses"], (path, answer)


def test_answers_cannot_be_framed_stored_or_sniffed(service: Running) -> None:
    for path in ("/", "/v2", "/none"):
        headers = service.get(path).headers
        assert headers["x-frame-options"] == "DENY"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert "default-src 'none'" in headers["content-security-policy"]
    assert "server" not in service.get("/").headers


def test_a_head_request_has_no_body(service: Running) -> None:
    answer = httpx.head(service.url + "/v2", trust_env=False)
    assert answer.status_code == 200
    assert answer.content == b""


def test_the_client_of_the_page_runs(
    service: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tritonclient.http", reason="tritonclient[http] is not installed")
    text = (Path(__file__).parents[3] / "docs/serving.md").read_text()
    (block,) = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    (tmp_path / "photo.jpg").write_bytes(photo())
    monkeypatch.chdir(tmp_path)
    exec(compile(block.replace("127.0.0.1:8000", f"127.0.0.1:{service.port}"), "serving.md", "exec"), {})
    assert re.search(r"0\.\d+:\d:class \d", capsys.readouterr().out)
