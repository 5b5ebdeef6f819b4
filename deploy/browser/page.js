// The page: ./model.onnx is loaded once; an image that is chosen, or named by ?image=PATH, is classified.
import * as ort from "onnxruntime-web";
import { classify, openModel, withoutAlpha } from "./classify.js";

const state = document.getElementById("state");
const canvas = document.getElementById("canvas");
const table = document.getElementById("classes");

async function bytesOf(path) {
  const response = await fetch(path);
  if (!response.ok) throw new Error(`${path}: ${response.status} ${response.statusText}`);
  return new Uint8Array(await response.arrayBuffer());
}

/** Draw an image file to the canvas and return its RGB bytes, as the manifest wants them. */
function pixels(bitmap) {
  canvas.width = bitmap.width;
  canvas.height = bitmap.height;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  return withoutAlpha(context.getImageData(0, 0, bitmap.width, bitmap.height).data);
}

async function show(model, blob) {
  const turned = model.manifest.preprocess.orientation === "apply";
  const bitmap = await createImageBitmap(blob, {
    imageOrientation: turned ? "from-image" : "none", // what EXIF says, or as it is stored
    colorSpaceConversion: "none",
    premultiplyAlpha: "none",
  });
  const start = performance.now();
  const found = await classify(model, pixels(bitmap), bitmap.height, bitmap.width);
  state.textContent = `${bitmap.width} x ${bitmap.height}, ${(performance.now() - start).toFixed(0)} ms`;
  table.replaceChildren(...found.map(({ name, probability }) => {
    const row = document.createElement("tr");
    for (const text of [name, `${(100 * probability).toFixed(2)} %`]) {
      row.appendChild(document.createElement("td")).textContent = text;
    }
    return row;
  }));
  document.body.dataset.result = JSON.stringify(found);
}

function failed(error) {
  state.textContent = `Failed: ${error.message}`;
  document.body.dataset.failed = error.message;
}

try {
  ort.env.wasm.numThreads = 1; // more need the headers of cross-origin isolation from the server
  const model = await openModel(ort, await bytesOf("model.onnx"));
  state.textContent = `${model.manifest.classes.length} classes. Choose an image.`;
  document.getElementById("file").addEventListener("change", (event) => {
    show(model, event.target.files[0]).catch(failed);
  });
  const named = new URLSearchParams(location.search).get("image");
  if (named) await show(model, new Blob([await bytesOf(named)]));
} catch (error) {
  failed(error);
}
